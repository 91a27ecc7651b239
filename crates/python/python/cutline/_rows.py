"""What a captioner answers: the same fields as the HTTP server. docs/api.md explains them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict, final


class Choice(TypedDict):
    """One of the returned captions."""

    text: str
    confidence: float | None
    tokens: int
    finish_reason: str
    match: NotRequired[float]


class ImageInfo(TypedDict):
    """The captioned photo."""

    hash: str
    format: str
    width: int
    height: int
    size_bytes: int


class Timings(TypedDict):
    """Where the time went, in milliseconds."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


class DominantColor(TypedDict):
    """A colour and its share of the photo."""

    hex: str
    rgb: list[int]
    name: str
    fraction: float


class Mood(TypedDict):
    """How the colours are perceived."""

    label: str
    valence: float
    energy: float
    warmth: float
    brightness: float
    saturation: float


@final
class Caption(TypedDict):
    """The answer for one image."""

    caption: str
    captions: list[Choice]
    model: str
    cache: Literal["miss", "hit", "coalesced"]
    vision_cache: NotRequired[Literal["miss", "hit"]]
    image: ImageInfo
    colors: NotRequired[list[DominantColor]]
    mood: NotRequired[Mood]
    timings: Timings
    fallback: NotRequired[bool]
    fallback_reason: NotRequired[str]


class Problem(TypedDict):
    """Why there is no caption."""

    code: str
    detail: str
    field: NotRequired[str]


@final
class Failure(TypedDict):
    """The row of an image without a caption."""

    error: Problem


Row: TypeAlias = Caption | Failure
"""A caption, or with the key ``error`` the reason why there is none."""


class Gpu(TypedDict):
    """A GPU, as its driver describes it."""

    name: str
    memory_bytes: int
    compute_capability: str


class GenerationDefaults(TypedDict):
    """Defaults and limits of decoding."""

    max_new_tokens: int
    max_new_tokens_limit: int
    min_new_tokens: int
    num_beams: int
    num_beams_limit: int
    num_captions_limit: int
    length_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int


class ModelInfo(TypedDict):
    """The loaded model and how it runs."""

    id: str
    architecture: str
    tasks: list[str]
    embedding_size: NotRequired[int]
    parameters: int
    precision: str
    kernels: str
    device: str
    gpu: NotRequired[Gpu]
    threads: int
    input_size: list[int]
    vocab_size: int
    max_positions: int
    generation: GenerationDefaults
    digest: str
    source: str
    revision: NotRequired[str]
    license: NotRequired[str]
    load_ms: float
    warm_up_ms: float
    memory_bytes: NotRequired[int]
