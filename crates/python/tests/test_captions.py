"""Captions, rows and errors."""

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import cutline

# Differs each time, or is about the cache.
CHANGING = ("timings", "cache", "vision_cache")


def program(*arguments: str | Path) -> Any:
    command = [sys.executable, "-m", "cutline", "caption", "--format", "json", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300).stdout)


def opened(source: Path | io.BytesIO) -> PIL.Image.Image:
    image = PIL.Image.open(source)
    # Closes the file.
    image.load()
    return image


def stable(row: Any) -> Any:
    return {name: value for name, value in row.items() if name not in CHANGING}


def test_rows_are_those_of_the_program(captioner: cutline.Captioner, photos: list[Path]) -> None:
    rows = captioner.caption(photos)
    expected = program(*photos)
    assert len(rows) == len(expected) == len(photos)
    for row, other in zip(rows, expected, strict=True):
        names = set(stable(row))
        # The program adds the path and what it needs to continue.
        assert stable(row) == {name: other[name] for name in names}
        assert {"caption", "captions", "model", "image", "colors", "mood"} == names


def test_parameters_are_those_of_the_program(captioner: cutline.Captioner, cat: Path) -> None:
    row = captioner.caption(cat, prompt="a photo of", num_beams=3, num_captions=2, max_new_tokens=12)
    options = ["--prompt", "a photo of", "--num-beams=3", "--num-captions=2", "--max-new-tokens=12"]
    (expected,) = program(*options, cat)
    assert row["captions"] == expected["captions"]
    assert len(row["captions"]) == 2
    assert row["caption"].startswith("a photo of")
    assert captioner.fingerprint != captioner.fingerprint_of(num_beams=3)


def test_the_fields_are_those_of_the_contract(captioner: cutline.Captioner, cat: Path) -> None:
    contract = json.loads((Path(__file__).resolve().parents[3] / "openapi.json").read_text())
    schemas = contract["components"]["schemas"]
    # A library and routes are of servers alone.
    absent = {"Caption": {"template", "experiment", "routing"}, "ModelInfo": {"others"}}
    # A confidence is null if a route does not know it, but it is there.
    required = {"Choice": {"confidence"}}
    kinds = [
        *("Caption", "Choice", "ImageInfo", "Timings", "DominantColor", "Mood"),
        *("ModelInfo", "GenerationDefaults", "Gpu"),
    ]
    for name in kinds:
        kind, schema = getattr(cutline, name), schemas[name]
        fields = kind.__required_keys__ | kind.__optional_keys__
        assert fields == set(schema["properties"]) - absent.get(name, set()), name
        # With `from __future__ import annotations`, `NotRequired` is only in the annotation.
        optional = {field for field, type_ in kind.__annotations__.items() if "NotRequired" in str(type_)}
        assert fields - optional == set(schema["required"]) | required.get(name, set()), name
    assert set(cutline.Problem.__annotations__) <= set(schemas["Problem"]["properties"])
    assert set(captioner.caption(cat)) <= set(schemas["Caption"]["properties"])
    assert set(captioner.info) <= set(schemas["ModelInfo"]["properties"])


def test_all_forms_of_an_image_have_one_caption(captioner: cutline.Captioner, cat: Path) -> None:
    data = cat.read_bytes()
    pillow = opened(cat)
    array = np.asarray(pillow)
    images = [str(cat), cat, data, bytearray(data), memoryview(data), pillow, array]
    images += [np.frombuffer(data, dtype=np.uint8), array[:, ::-1][:, ::-1]]
    rows = captioner.caption(images)
    assert {row["captions"][0]["text"] for row in rows} == {"a cat sitting on top of a table"}
    # Pixels have the confidence of the file, bit for bit, because they are the file's.
    assert len({row["captions"][0]["confidence"] for row in rows}) == 1
    assert [row["image"]["format"] for row in rows] == ["jpeg"] * 5 + ["png"] * 2 + ["jpeg", "png"]
    assert all((row["image"]["width"], row["image"]["height"]) == pillow.size for row in rows)
    assert [captioner.caption(image)["caption"] for image in images] == [row["caption"] for row in rows]


def test_pixels_are_read_as_those_of_a_file(captioner: cutline.Captioner, cat: Path) -> None:
    pillow = opened(cat)
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        image = pillow.convert(mode)
        file = io.BytesIO()
        image.save(file, "PNG" if mode != "CMYK" else "TIFF")
        of_file, of_image = captioner.caption([file.getvalue(), image])
        assert of_file["captions"] == of_image["captions"], mode
    grey = np.asarray(pillow.convert("L"))
    rows = captioner.caption([grey, grey[:, :, None], pillow.convert("L")])
    assert rows[0]["captions"] == rows[1]["captions"] == rows[2]["captions"]


def test_an_image_of_pillow_is_turned_as_its_file_is(captioner: cutline.Captioner, cat: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    # Lossless, so that both have the same pixels.
    opened(cat).save(file, "PNG", exif=exif)
    rows = captioner.caption([file.getvalue(), opened(file)])
    assert rows[0]["captions"] == rows[1]["captions"]
    size = [(row["image"]["width"], row["image"]["height"]) for row in rows]
    assert size[0] == size[1] == opened(cat).size[::-1]


def test_a_large_array_may_have_more_bytes_than_a_file(captioner: cutline.Captioner) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2400, 2000, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "PNG", compress_level=0)
    array, pillow, bytes_ = captioner.caption([noise, PIL.Image.fromarray(noise), file.getvalue()])
    assert array["image"]["size_bytes"] > 10 << 20
    assert array["captions"] == pillow["captions"]
    assert bytes_["error"]["code"] == "image_too_large"
    assert "MAX_IMAGE_SIZE" in bytes_["error"]["detail"]


def test_a_bad_image_has_a_row_of_its_own(captioner: cutline.Captioner, cat: Path, tmp_path: Path) -> None:
    rows = captioner.caption([cat, b"no image", tmp_path / "absent.jpg", tmp_path, b"", cat])
    assert [row.get("error", {}).get("code") for row in rows] == [
        *(None, "unsupported_format", "io_error", "io_error", "unsupported_format", None)
    ]
    assert "absent.jpg: cannot be read" in rows[2]["error"]["detail"]
    assert "check the path" in rows[2]["error"]["detail"]
    with pytest.raises(cutline.CutlineError, match="not") as raised:
        captioner.caption([cat, b"no image"], on_error="raise")
    assert raised.value.code == "unsupported_format"
    with pytest.raises(cutline.CutlineError):
        captioner.caption(b"no image")
    assert "error" in captioner.caption(b"no image", on_error="row")
    assert captioner.caption([]) == []


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": "3"}, "num_beams"),
        ({"no_such": 1}, "no_such"),
        ({"max_new_tokens": 100_000}, "max_new_tokens"),
        ({"prompt": "word " * 1000}, "prompt"),
        ({"stream": True}, "stream"),
        ({"model": "other"}, "model"),
        ({"template": "alt"}, "template"),
        ({"on_error": "ignore"}, "on_error"),
        ({"temperature": float("nan")}, None),
        ({"seed": object()}, None),
    ],
)
def test_wrong_parameters_are_named(
    captioner: cutline.Captioner, params: dict[str, Any], field: str | None
) -> None:
    for call in (captioner.caption, captioner.stream):
        # Before an image is looked at.
        with pytest.raises(cutline.CutlineError) as raised:
            call([object()], **params)
        assert (raised.value.code, raised.value.field) == ("invalid_parameter", field)
        assert len(str(raised.value)) > 20


@pytest.mark.parametrize("image", [3, None, object(), {}, np.zeros((4, 4, 2), np.uint8)])
@pytest.mark.parametrize("many", [False, True])
def test_what_is_no_image_is_refused(captioner: cutline.Captioner, image: Any, many: bool) -> None:
    if not many and not isinstance(image, np.ndarray):
        image = [image]
    with pytest.raises(cutline.CutlineError, match="is no image; give") as raised:
        captioner.caption([image] if many and not isinstance(image, list) else image)
    assert raised.value.field == "images"


def test_arrays_of_other_types_and_shapes_are_refused(captioner: cutline.Captioner) -> None:
    for array in (np.zeros((8, 8, 3)), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 8), bool)):
        with pytest.raises(cutline.CutlineError, match="is no image; give"):
            captioner.caption(array)
    with pytest.raises(cutline.CutlineError, match="give one with pixels"):
        captioner.caption(np.zeros((0, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": "./absent"}, "absent"),
        ({"device": "cuda"}, "DEVICE=cuda"),
        ({"device": "tpu"}, "DEVICE=tpu .from the caller. cannot be used"),
        ({"precision": "f7"}, "PRECISION=f7"),
        ({"batch_size": 0}, "MAX_BATCH_SIZE=0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 1000}, "the same number to all captioners"),
    ],
)
def test_wrong_arguments_are_named(
    captioner: cutline.Captioner, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(cutline.CutlineError, match=text) as raised:
        cutline.Captioner(**arguments)
    assert raised.value.code in ("invalid_setting", "model_error", "invalid_parameter")


def test_a_stream_looks_ahead_a_little_and_keeps_the_order(
    captioner: cutline.Captioner, photos: list[Path]
) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            yield photos[taken % len(photos)]
            taken += 1

    rows = captioner.stream(endless(), cache="bypass")
    expected = [row["image"]["hash"] for row in captioner.caption(photos)]
    for number in range(30):
        row = next(rows)
        assert row["image"]["hash"] == expected[number % len(photos)]
        assert taken <= number + 64
    rows.close()  # type: ignore[attr-defined]
    # The captions in work are cancelled, and the captioner goes on.
    assert captioner.caption(photos[0])["caption"]


def test_an_exception_of_the_iterable_reaches_the_caller(
    captioner: cutline.Captioner, cat: Path
) -> None:
    def broken() -> Iterator[Path]:
        yield cat
        raise ValueError("the source is broken")

    with pytest.raises(ValueError, match="the source is broken"):
        list(captioner.stream(broken()))


def test_exceptions_are_pickled_with_everything() -> None:
    error = cutline.CutlineError("cannot be; stop", "internal", "x")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.code, copy.field) == ("cannot be; stop", "internal", "x")
