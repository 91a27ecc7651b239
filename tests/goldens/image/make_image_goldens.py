"""Makes the images of every kind that tests/it/image.rs decodes, and what Pillow and transformers
make of them.

    pip install -r requirements.txt
    python make_image_goldens.py        # from anywhere; writes beside itself

`zoo/NAME.EXT` is an input; `resized/NAME.png` what the reference makes of it: Pillow's
`open`, `ImageOps.exif_transpose`, transformers' `convert_to_rgb` (which lays transparency on white),
and Pillow's bicubic `resize` to SIZE × SIZE. `photos/NAME.png` is the same for the photos in
`examples/`. `pixel_values.bin` is one photo through `BlipImageProcessorPil`, little-endian float32.
Everything is deterministic: running it again changes nothing.
"""

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

logging.disable(logging.WARNING)

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[2] / "examples"
WIDTH, HEIGHT = 72, 48
SIZE = 32  # of the zoo
PHOTO_SIZE = 96  # of the photos
VALUES_SIZE = 32  # of pixel_values.bin
ROWS_384 = (288, 320)  # of the photo at 384 × 384
BICUBIC = Image.Resampling.BICUBIC


def photo() -> Image.Image:
    """A small real photo: the cat, scaled down."""
    return Image.open(EXAMPLES / "cat.jpg").convert("RGB").resize((WIDTH, HEIGHT), BICUBIC)


def alpha() -> np.ndarray:
    """Transparency that takes every value."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((x * 255) // (WIDTH - 1) * (y > 8)).astype(np.uint8)


def grey16() -> np.ndarray:
    """16-bit grey whose lower bytes are not those of an 8-bit image."""
    grey = np.array(photo().convert("L")).astype(np.uint32)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (grey * 256 + (x * 7 + y * 13) % 256).astype(np.uint16)


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: Pillow writes no 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    body = b"".join(chunk(kind, data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def png16(channels: list[np.ndarray], color: int) -> bytes:
    channels = [channel[::2, ::2].astype(np.uint32) for channel in channels]
    height, width = channels[0].shape
    y, x = np.mgrid[0:height, 0:width]
    wide = [channel * 256 + (x * (5 + i) + y * 11) % 256 for i, channel in enumerate(channels)]
    return png(width, height, 16, color, np.stack(wide, -1).astype(">u2").tobytes())


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpegs(rgb: Image.Image) -> dict[str, bytes]:
    zoo = {
        "jpeg_444.jpg": encode(rgb, "JPEG", quality=90, subsampling="4:4:4"),
        "jpeg_422.jpg": encode(rgb, "JPEG", quality=90, subsampling="4:2:2"),
        "jpeg_420.jpg": encode(rgb, "JPEG", quality=90, subsampling="4:2:0"),
        "jpeg_420_odd.jpg": encode(rgb.crop((0, 0, 61, 43)), "JPEG", quality=75, subsampling="4:2:0"),
        "jpeg_progressive.jpg": encode(rgb, "JPEG", quality=85, progressive=True, subsampling="4:2:0"),
        "jpeg_restart.jpg": encode(rgb, "JPEG", quality=85, restart_marker_blocks=3),
        "jpeg_grey.jpg": encode(rgb.convert("L"), "JPEG", quality=90),
        "jpeg_cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG", quality=90),
        "jpeg_rgb.jpg": encode(rgb, "JPEG", quality=90, keep_rgb=True),
        "jpeg_tiny.jpg": encode(rgb.crop((40, 20, 41, 21)), "JPEG", quality=90),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        small = rgb.resize((36, 24), BICUBIC)
        zoo[f"jpeg_exif_{orientation}.jpg"] = encode(small, "JPEG", quality=85, exif=exif)
    return zoo


def pngs(rgb: Image.Image) -> dict[str, bytes]:
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(alpha()))
    grey = rgb.convert("L")
    palette = rgb.quantize(24, dither=Image.Dither.NONE)
    exif = Image.Exif()
    exif[0x0112] = 6
    small = rgb.resize((36, 24), BICUBIC)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    text = Image.fromarray(((x // 2 + y // 3) % 2 * 255).astype(np.uint8))  # clips a filter that overshoots
    red, green, blue = (np.array(band) for band in rgb.split())
    return {
        "png_rgb.png": encode(small, "PNG", optimize=True),
        "png_alpha.png": encode(rgba, "PNG", optimize=True),
        "png_grey.png": encode(grey, "PNG", optimize=True),
        "png_grey_alpha.png": encode(Image.merge("LA", (grey, Image.fromarray(alpha()))), "PNG", optimize=True),
        "png_grey_transparent.png": encode(grey.quantize(16).convert("L"), "PNG", transparency=0, optimize=True),
        "png_palette.png": encode(palette, "PNG", optimize=True),
        "png_palette_alpha.png": encode(palette, "PNG", transparency=bytes(range(0, 240, 10)), optimize=True),
        "png_bilevel.png": encode(grey.convert("1"), "PNG", optimize=True),
        "png_checks.png": encode(text, "PNG", optimize=True),
        "png_interlaced.png": interlaced(small),
        "png_grey16.png": encode(Image.fromarray(grey16()), "PNG", optimize=True),
        "png_rgb16.png": png16([red, green, blue], 2),
        "png_rgba16.png": png16([red, green, blue, alpha()], 6),
        "png_exif_6.png": encode(small, "PNG", exif=exif, optimize=True),
        "png_tiny.png": encode(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"),
        "png_wide.png": encode(Image.fromarray((np.arange(20000) // 40 % 256).astype(np.uint8)[None, :]), "PNG", optimize=True),
    }


def interlaced(rgb: Image.Image) -> bytes:
    """Adam7, which Pillow does not write."""
    pixels = np.array(rgb)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for left, top, dx, dy in passes:
        for row in pixels[top::dy, left::dx]:
            raw += b"\0" + row.tobytes() if row.size else b""
    whole = png(rgb.width, rgb.height, 8, 2, b"\0" * (3 * rgb.width * rgb.height))
    header = struct.pack(">IIBBBBB", rgb.width, rgb.height, 8, 2, 0, 0, 1)
    ihdr = b"\0\0\0\x0dIHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    body = zlib.compress(raw, 9)
    idat = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    return whole[:8] + ihdr + idat + whole[-12:]


def others(rgb: Image.Image) -> dict[str, bytes]:
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(alpha()))
    palette = rgb.quantize(32, dither=Image.Dither.NONE)
    small = rgb.resize((36, 24), BICUBIC)
    second = ImageOps.invert(rgb).quantize(32)
    return {
        "gif.gif": encode(palette, "GIF"),
        "gif_transparent.gif": encode(palette, "GIF", transparency=3),
        "gif_animated.gif": encode(palette, "GIF", save_all=True, append_images=[second], duration=50),
        "bmp.bmp": encode(small, "BMP"),
        "bmp_palette.bmp": encode(palette, "BMP"),
        "bmp_grey.bmp": encode(small.convert("L"), "BMP"),
        "bmp_32.bmp": encode(small.convert("RGBA"), "BMP"),
        "tiff.tiff": encode(small, "TIFF", compression="raw"),
        "tiff_lzw.tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "tiff_deflate.tiff": encode(small, "TIFF", compression="tiff_adobe_deflate"),
        "tiff_grey.tiff": encode(small.convert("L"), "TIFF", compression="tiff_lzw"),
        "tiff_grey16.tiff": encode(Image.fromarray(grey16()), "TIFF", compression="tiff_lzw"),
        "tiff_cmyk.tiff": encode(small.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "tiff_alpha.tiff": encode(rgba.crop((20, 0, 50, 30)), "TIFF", compression="tiff_lzw"),
        "tiff_exif_8.tiff": encode(small, "TIFF", compression="raw", tiffinfo={274: 8}),
        "webp_lossy.webp": encode(rgb, "WEBP", quality=80),
        "webp_lossless.webp": encode(rgb, "WEBP", lossless=True),
        "webp_alpha.webp": encode(rgba, "WEBP", quality=80),
        "webp_animated.webp": encode(rgb, "WEBP", save_all=True, append_images=[ImageOps.invert(rgb)], quality=60),
    }


def reference(data: bytes, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        # Pillow's own I;16 to RGB clips at 255 and leaves a white image. The upper byte is what
        # Pillow keeps of 16-bit colour; so it is here.
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    return Image.fromarray(convert_to_rgb(image, return_numpy=True))


def main() -> None:
    for folder in ("zoo", "resized", "photos"):
        (HERE / folder).mkdir(exist_ok=True)
    rgb = photo()
    for name, data in {**jpegs(rgb), **pngs(rgb), **others(rgb)}.items():
        (HERE / "zoo" / name).write_bytes(data)
        resized = reference(data, name).resize((SIZE, SIZE), BICUBIC)
        resized.save(HERE / "resized" / f"{name.split('.')[0]}.png", optimize=True)
    for path in sorted(EXAMPLES.glob("*.jpg")):
        resized = reference(path.read_bytes(), path.name).resize((PHOTO_SIZE, PHOTO_SIZE), BICUBIC)
        resized.save(HERE / "photos" / f"{path.stem}.png", optimize=True)
    for resample in list(Image.Resampling)[:6]:
        resized = Image.open(EXAMPLES / "coffee.jpg").resize((SIZE, SIZE), resample)
        resized.save(HERE / "photos" / f"coffee_resample_{resample.value}.png", optimize=True)
    # At the model's own size, where less is averaged away; 32 rows of it, those that differ most.
    whole = Image.open(EXAMPLES / "coffee.jpg").resize((384, 384), BICUBIC)
    whole.crop((0, ROWS_384[0], 384, ROWS_384[1])).save(HERE / "photos" / "coffee_384_rows.png", optimize=True)
    rgb.resize((90, 61), BICUBIC).save(HERE / "photos" / "upscaled.png", optimize=True)
    processor = BlipImageProcessorPil(size={"height": VALUES_SIZE, "width": VALUES_SIZE})
    values = processor(Image.open(EXAMPLES / "coffee.jpg"), return_tensors="np")["pixel_values"]
    assert values.shape == (1, 3, VALUES_SIZE, VALUES_SIZE), values.shape
    (HERE / "pixel_values.bin").write_bytes(values.astype("<f4").tobytes())


if __name__ == "__main__":
    main()
