"""Images as callers have them."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from typing_extensions import Buffer
else:
    PillowImage = Any

Image: TypeAlias = Union[str, "os.PathLike[str]", "Buffer", "PillowImage"]
"""A path, the bytes of an image file, an image of Pillow, or an array of type uint8 and shape [height, width]
or [height, width, channels]."""

# PNG has these; their colours are kept as they are.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


def is_pillow(image: object) -> bool:
    """Whether this is an image of Pillow, which need not be installed."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def is_image(images: object) -> bool:
    """Whether this is one image. Several are in something that is none itself."""
    if isinstance(images, str | os.PathLike) or is_pillow(images):
        return True
    try:
        memoryview(images).release()  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def encoded(image: Any) -> bytes:
    """The image as a PNG that is not compressed, with its colour profile. It is turned as its EXIF data say,
    as files are."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    file = io.BytesIO()
    upright.save(file, "PNG", compress_level=0)
    return file.getvalue()
