"""The captioner."""

from __future__ import annotations

import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast, overload

from cutline import _native
from cutline._errors import CutlineError
from cutline._inputs import Image, encoded, is_image, is_pillow
from cutline._rows import Caption, Failure, ModelInfo, Problem, Row


class Captioner:
    """Captions images with one model, which is loaded at once.

    It may be used by several threads. It is pickled as its arguments: whoever unpickles it loads the model
    again. It does not work in a process that was forked after it was made.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "embedded",
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Loads a model.

        ``model``: ``embedded``, a folder, a GGUF file, or a repository on the Hugging Face hub.
        ``device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        ``precision``: ``auto``, ``f32``, ``f16``, ``bf16`` or ``int8``.
        ``batch_size``: captions that are written together; by default what suits the device.
        ``threads``: threads that compute, the same for all captioners of a process. By default
        ``RAYON_NUM_THREADS``, then ``OMP_NUM_THREADS``, which Ray sets, then all cores.

        All other settings are read from the environment, as by the program.
        """
        self._arguments: dict[str, Any] = {
            "model": os.fspath(model),
            "device": device,
            "precision": precision,
            "batch_size": batch_size,
            "threads": threads,
        }
        settings = {"MODEL": self._arguments["model"], "DEVICE": device, "PRECISION": precision}
        if batch_size is not None:
            settings["MAX_BATCH_SIZE"] = str(batch_size)
        self._engine = _native.Engine(settings, _threads(threads))

    def __reduce__(self) -> tuple[Callable[[], Captioner], tuple[()]]:
        return functools.partial(type(self), **self._arguments), ()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"{type(self).__name__}({arguments})"

    @property
    def info(self) -> ModelInfo:
        """The model and how it runs, as ``/model/info`` tells it."""
        return cast(ModelInfo, json.loads(self._engine.info()))

    @property
    def fingerprint(self) -> str:
        """A short hash of model, precision and input size. Captions with the same one are equal, on one
        machine."""
        return self.fingerprint_of()

    def fingerprint_of(self, **params: Any) -> str:
        """The fingerprint of captions with these parameters. It is the one in the rows of
        ``cutline caption``."""
        return self._engine.fingerprint(self._parameters(params))

    @overload
    def caption(
        self, images: Image, *, on_error: Literal["raise"] | None = None, **params: Any
    ) -> Caption: ...
    @overload
    def caption(self, images: Image, *, on_error: Literal["row"], **params: Any) -> Row: ...
    @overload
    def caption(
        self,
        images: Iterable[Image],
        *,
        on_error: Literal["raise", "row"] | None = None,
        **params: Any,
    ) -> list[Row]: ...
    def caption(
        self,
        images: Image | Iterable[Image],
        *,
        on_error: Literal["raise", "row"] | None = None,
        **params: Any,
    ) -> Caption | Row | list[Row]:
        """Captions one image, or several.

        One image has one row; several have a list of rows in the same order. If one of several cannot be
        captioned, its row has the key ``error``; with ``on_error="raise"``, and for one image, it is raised.
        ``params`` are those of the HTTP server: ``prompt``, ``num_beams``, ``style``, ….
        """
        if is_image(images):
            one = [cast(Image, images)]
            return next(self.stream(one, on_error=on_error or "raise", **params))
        several = cast("Iterable[Image]", images)
        return list(self.stream(several, on_error=on_error or "row", **params))

    def stream(
        self,
        images: Iterable[Image],
        *,
        on_error: Literal["raise", "row"] = "row",
        **params: Any,
    ) -> Iterator[Row]:
        """Captions images as they come, and yields their rows in the same order.

        It takes a few images more than it has yielded rows, enough to keep the model busy, and never more
        than that. Whoever stops reading cancels the captions in work.
        """
        if on_error not in ("raise", "row"):
            raise CutlineError(
                f"on_error={on_error!r} cannot be used: give 'raise' or 'row'",
                "invalid_parameter",
                "on_error",
            )
        return self._rows(images, self._parameters(params), on_error)

    def _rows(
        self, images: Iterable[Image], parameters: _native.Parameters, on_error: str
    ) -> Iterator[Row]:
        pending: deque[_native.Pending] = deque()
        # Twice as many as are captioned at a time: finished images wait here for slower ones before them.
        most = 2 * self._engine.at_once
        try:
            for image in images:
                pending.append(self._start(image, parameters))
                while pending and (len(pending) >= most or pending[0].is_ready()):
                    yield self._row(pending.popleft(), on_error)
            while pending:
                yield self._row(pending.popleft(), on_error)
        finally:
            # Cancels them now: the traceback of an exception may keep this frame.
            pending.clear()

    def _start(self, image: Image, parameters: _native.Parameters) -> _native.Pending:
        if is_pillow(image):
            return self._engine.start(encoded(image), parameters, True)
        return self._engine.start(image, parameters, False)

    def _row(self, pending: _native.Pending, on_error: str) -> Row:
        try:
            return cast(Caption, json.loads(pending.wait()))
        except CutlineError as error:
            # If the model has stopped, no other image will have a caption.
            if on_error == "raise" or self._engine.has_failed():
                raise
            problem = Problem(code=error.code, detail=str(error))
            if error.field is not None:
                problem["field"] = error.field
            return Failure(error=problem)

    def _parameters(self, params: dict[str, Any]) -> _native.Parameters:
        try:
            text = json.dumps(params, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CutlineError(
                f"the parameters cannot be used ({error}); give texts, numbers and booleans",
                "invalid_parameter",
            ) from error
        return self._engine.parameters(text)


def _threads(given: int | None) -> int | None:
    """The number of threads, or none if the library is to decide, which reads RAYON_NUM_THREADS."""
    if given is not None:
        if given < 1:
            raise CutlineError(
                "threads must be at least 1; leave it out for all cores", "invalid_parameter", "threads"
            )
        return given
    # The first of a list: OpenMP has one for each level.
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if "RAYON_NUM_THREADS" in os.environ or not text.isdecimal() or int(text) < 1:
        return None
    return int(text)
