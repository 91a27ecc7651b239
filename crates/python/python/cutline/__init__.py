"""Image captions on your own machine.

>>> import cutline
>>> captioner = cutline.Captioner()
>>> captioner.caption("assets/cat.jpg")["caption"]
'a cat sitting on top of a table'
"""

from cutline._captioner import Captioner
from cutline._errors import CutlineError
from cutline._inputs import Image
from cutline._native import VERSION as __version__
from cutline._rows import (
    Caption,
    Choice,
    DominantColor,
    Failure,
    GenerationDefaults,
    Gpu,
    ImageInfo,
    ModelInfo,
    Mood,
    Problem,
    Row,
    Timings,
)

__all__ = [
    "Caption",
    "Captioner",
    "Choice",
    "CutlineError",
    "DominantColor",
    "Failure",
    "GenerationDefaults",
    "Gpu",
    "Image",
    "ImageInfo",
    "ModelInfo",
    "Mood",
    "Problem",
    "Row",
    "Timings",
    "__version__",
]
