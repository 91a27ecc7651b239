"""Makes the images that tests/it/image.rs decodes, one for each kind, and the reference results of Pillow
and transformers.

    pip install -r requirements.txt     # and avifenc 0.11.1, in Debian's libavif-bin
    python make_image_goldens.py        # from any folder; writes next to this file

`zoo/NAME.EXT` is an input and `resized/NAME.png` its reference result: Pillow's `open`,
`ImageOps.exif_transpose`, transformers' `convert_to_rgb` (which puts transparency on white), and
Pillow's bicubic `resize` to SIZE × SIZE. `decoded/NAME.png` is the reference of an AVIF before the resize.
`photos/NAME.png` is the same as `resized` for the photos in `assets/`. `pixel_values.bin` is the output of `BlipImageProcessorPil` for one photo, little-endian float32.
`refused/CODE/NAME.EXT` are files that must be refused with that error code: one for each kind of damage,
one for each limit, and unsupported formats.

An image with a wide-gamut profile (`*_icc_*`) is converted to sRGB by Little CMS after it is resized;
BlipImageProcessor would not do that. `photos/rocket.png` ignores the photo's Adobe RGB profile,
`photos/rocket_icc.png` applies it.
The output is deterministic: running the script again changes nothing.
"""

import io
import logging
import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, ImageCms, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

logging.disable(logging.WARNING)

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parents[2] / "assets"
WIDTH, HEIGHT = 72, 48
SIZE = 32  # side of the resized zoo images
PHOTO_SIZE = 96  # side of the resized photos
VALUES_SIZE = 32  # side of the image in pixel_values.bin
ROWS_384 = (288, 320)  # rows kept of the photo at 384 × 384
BICUBIC = Image.Resampling.BICUBIC


def photo() -> Image.Image:
    """A small real photo: the cat, scaled down."""
    return Image.open(PHOTOS / "cat.jpg").convert("RGB").resize((WIDTH, HEIGHT), BICUBIC)


def alpha() -> np.ndarray:
    """An alpha channel that contains every value."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((x * 255) // (WIDTH - 1) * (y > 8)).astype(np.uint8)


def grey16() -> np.ndarray:
    """A 16-bit grey image whose lower bytes are not copies of the upper ones."""
    grey = np.array(photo().convert("L")).astype(np.uint32)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (grey * 256 + (x * 7 + y * 13) % 256).astype(np.uint16)


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG encoded here, because Pillow cannot write 16-bit colour."""

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
    zoo["jpeg_ycck.jpg"] = ycck(rgb)
    zoo["jpeg_440.jpg"] = sampled_440(rgb)
    zoo["jpeg_progressive_grey.jpg"] = encode(rgb.convert("L"), "JPEG", quality=85, progressive=True)
    zoo["jpeg_icc_p3.jpg"] = encode(rgb, "JPEG", quality=95, subsampling="4:4:4", icc_profile=P3)
    zoo["jpeg_icc_adobe.jpg"] = encode(rgb, "JPEG", quality=95, subsampling="4:4:4", icc_profile=ADOBE_RGB)
    zoo["jpeg_icc_srgb.jpg"] = encode(rgb, "JPEG", quality=90, icc_profile=SRGB)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        small = rgb.resize((36, 24), BICUBIC)
        zoo[f"jpeg_exif_{orientation}.jpg"] = encode(small, "JPEG", quality=85, exif=exif)
    return zoo


def ycck(rgb: Image.Image) -> bytes:
    """CMYK stored as YCbCr and black (YCCK), as Photoshop writes it. Pillow cannot, so this transforms the
    samples first and then sets the Adobe marker."""
    inks = np.array(rgb.convert("CMYK"))
    stored = np.array(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    stored = np.dstack([stored, 255 - inks[..., 3]])
    # Pillow inverts CMYK samples when it writes them.
    data = bytearray(encode(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=92))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    return bytes(data)


def sampled_440(rgb: Image.Image) -> bytes:
    """Chroma halved in height only: the rotated photo as 4:2:2, with its sampling factors then swapped.
    The decoded image is not the photo, but every decoder must produce the same one."""
    data = bytearray(encode(rgb, "JPEG", quality=90, subsampling="4:2:2"))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == 0x21
    data[frame + 11] = 0x12
    # Has the same number of blocks, for an image with width and height swapped.
    data[frame + 5 : frame + 9] = struct.pack(">HH", WIDTH, HEIGHT)
    return bytes(data)


def profile(primaries: list[tuple[float, float]], curve: bytes) -> bytes:
    """A version 4 ICC profile of a display with these primaries (x, y) and white point D65."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1.0, (1 - x - y) / y])

    # Adapts to D50, the white point of the profile connection space, with the Bradford matrix.
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65, d50 = xyz(0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford
    columns = np.stack([xyz(x, y) for x, y in primaries], 1)
    columns = adapt @ (columns * np.linalg.solve(columns, d65))

    def fixed(values) -> bytes:
        return b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)

    def text(words: str) -> bytes:
        body = words.encode("utf-16-be")
        return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(body), 28) + body

    tags = {
        b"desc": text("made for tests"),
        b"cprt": text("none"),
        b"wtpt": b"XYZ \0\0\0\0" + fixed(d50),
        b"chad": b"sf32\0\0\0\0" + fixed(adapt.flatten()),
        **{name: b"XYZ \0\0\0\0" + fixed(columns[:, i]) for i, name in enumerate([b"rXYZ", b"gXYZ", b"bXYZ"])},
        **{name: curve for name in [b"rTRC", b"gTRC", b"bTRC"]},
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(d50)
    return header.ljust(128, b"\0") + table + body


def parametric(kind: int, *numbers: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(struct.pack(">i", round(n * 65536)) for n in numbers)


SRGB_CURVE = parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
SRGB = profile([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], SRGB_CURVE)
P3 = profile([(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)], SRGB_CURVE)
ADOBE_RGB = profile([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], parametric(0, 2.19921875))


def pngs(rgb: Image.Image) -> dict[str, bytes]:
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(alpha()))
    grey = rgb.convert("L")
    palette = rgb.quantize(24, dither=Image.Dither.NONE)
    small = rgb.resize((36, 24), BICUBIC)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    text = Image.fromarray(((x // 2 + y // 3) % 2 * 255).astype(np.uint8))  # makes an overshooting filter clip
    red, green, blue = (np.array(band) for band in rgb.split())
    inverted = ImageOps.invert(small)
    exifs = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exifs[f"png_exif_{orientation}.png"] = encode(small, "PNG", exif=exif, optimize=True)
    return {
        **exifs,
        "png_animated.png": encode(small, "PNG", save_all=True, append_images=[inverted], duration=50),
        "png_animated_default.png": encode(small, "PNG", save_all=True, append_images=[inverted], default_image=True),
        "png_icc_p3.png": encode(small, "PNG", icc_profile=P3, optimize=True),
        "png_icc_srgb.png": encode(small, "PNG", icc_profile=SRGB, optimize=True),
        "png_palette_4.png": encode(rgb.quantize(13, dither=Image.Dither.NONE), "PNG", bits=4, optimize=True),
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
        "png_tiny.png": encode(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"),
        "png_wide.png": encode(Image.fromarray((np.arange(20000) // 40 % 256).astype(np.uint8)[None, :]), "PNG", optimize=True),
    }


def interlaced(rgb: Image.Image) -> bytes:
    """An Adam7 interlaced PNG, which Pillow cannot write."""
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
    exifs = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exifs[f"webp_exif_{orientation}.webp"] = encode(small, "WEBP", lossless=True, exif=exif)
        exifs[f"tiff_exif_{orientation}.tiff"] = encode(small, "TIFF", compression="raw", tiffinfo={274: orientation})
    return {
        **exifs,
        "webp_icc_p3.webp": encode(small, "WEBP", lossless=True, icc_profile=P3),
        "webp_grey.webp": encode(rgb.convert("L"), "WEBP", quality=80),
        "tiff_adobe_rgb.tiff": encode(small, "TIFF", compression="tiff_lzw", icc_profile=ADOBE_RGB),
        "tiff_pages.tiff": encode(small, "TIFF", compression="tiff_lzw", save_all=True, append_images=[ImageOps.invert(rgb)]),
        "tiff_big.tiff": encode(small, "TIFF", compression="tiff_lzw", big_tiff=True),
        "tiff_bilevel.tiff": encode(rgb.convert("1"), "TIFF", compression="raw"),
        "gif_plain.gif": encode(palette, "GIF", interlace=0),
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
        "webp_lossy.webp": encode(rgb, "WEBP", quality=80),
        "webp_lossless.webp": encode(rgb, "WEBP", lossless=True),
        "webp_alpha.webp": encode(rgba, "WEBP", quality=80),
        "webp_animated.webp": encode(rgb, "WEBP", save_all=True, append_images=[ImageOps.invert(rgb)], quality=60),
    }


def avifs(rgb: Image.Image) -> dict[str, bytes]:
    """AVIFs of every kind. Pillow writes 8 bits per sample; avifenc, the tool of libavif, writes the others."""
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(alpha()))
    small = rgb.resize((36, 24), BICUBIC)
    wide = Image.open(PHOTOS / "cat.jpg").convert("RGB").resize((160, 128), BICUBIC)

    def pillow(image: Image.Image, **options) -> bytes:
        return encode(image, "AVIF", **{"quality": 90, "speed": 6, "codec": "aom", "max_threads": 1, **options})

    def avifenc(image: Image.Image, *options: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in.png", Path(folder) / "out.avif"
            image.save(source)
            quality = ["--min", "10", "--max", "10"] if "-l" not in options else []
            command = ["avifenc", "-c", "aom", "-j", "1", "-s", "6", *quality, *options, source, target]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return target.read_bytes()

    def undated(data: bytes) -> bytes:
        """Without the time of creation, so that the output is always the same."""
        for name in (b"mvhd", b"tkhd", b"mdhd"):
            times = data.index(name) + 8
            data = data[:times] + bytes(16) + data[times + 16 :]
        return data

    orientations = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        orientations[f"avif_exif_{orientation}.avif"] = pillow(small, subsampling="4:4:4", exif=exif)
    return {
        **orientations,
        "avif.avif": pillow(rgb, subsampling="4:2:0"),
        "avif_422.avif": pillow(rgb, subsampling="4:2:2"),
        "avif_444.avif": pillow(rgb, subsampling="4:4:4"),
        "avif_grey.avif": pillow(rgb.convert("L"), subsampling="4:0:0"),
        "avif_odd.avif": pillow(rgb.crop((0, 0, 71, 47)), subsampling="4:2:0"),
        "avif_limited.avif": pillow(rgb, subsampling="4:2:0", range="limited"),
        "avif_alpha.avif": pillow(rgba, subsampling="4:2:0"),
        "avif_premultiplied.avif": pillow(rgba, subsampling="4:4:4", alpha_premultiplied=True),
        "avif_icc_p3.avif": pillow(small, subsampling="4:4:4", icc_profile=P3),
        "avif_animated.avif": undated(pillow(small, save_all=True, append_images=[ImageOps.invert(small)], duration=50)),
        "avif_10.avif": avifenc(rgb, "-d", "10", "-y", "420"),
        "avif_10_422_limited.avif": avifenc(rgb, "-d", "10", "-y", "422", "-r", "limited"),
        "avif_10_alpha.avif": avifenc(rgba, "-d", "10", "-y", "420"),
        "avif_12_444.avif": avifenc(rgb, "-d", "12", "-y", "444"),
        "avif_12_grey.avif": avifenc(rgb.convert("L"), "-d", "12", "-y", "400"),
        "avif_bt709.avif": avifenc(rgb, "-y", "444", "--cicp", "1/13/1"),
        "avif_10_bt2020.avif": avifenc(rgb, "-d", "10", "-y", "444", "--cicp", "1/13/9"),
        "avif_ycgco.avif": avifenc(rgb, "-y", "444", "--cicp", "1/13/8"),
        "avif_identity.avif": avifenc(small, "-l", "--cicp", "1/13/0"),
        "avif_grain.avif": avifenc(rgb, "-y", "420", "-a", "film-grain-test=4"),
        "avif_grid.avif": avifenc(wide, "-y", "420", "--grid", "2x2"),
        "avif_turned_and_mirrored.avif": avifenc(small, "-y", "444", "--irot", "1", "--imir", "0"),
    }


def refused(zoo: dict[str, bytes]) -> dict[str, bytes]:
    """Files that must be refused, by error code and name."""

    def patched(name: str, *patches: tuple[int, bytes]) -> bytes:
        data = bytearray(zoo[name])
        for offset, new in patches:
            data[offset : offset + len(new)] = new
        return bytes(data)

    side = 20_000
    big, little = struct.pack(">I", side), struct.pack("<I", side)
    png = zoo["png_rgb.png"]
    ihdr = b"IHDR" + big + big + png[24:29]
    jpeg = zoo["jpeg_420.jpg"]
    frame = jpeg.index(b"\xff\xc0")
    scan = jpeg.index(b"\xff\xda")
    tables = jpeg.index(b"\xff\xdb")
    webp = zoo["webp_lossless.webp"]
    # Width - 1 and height - 1, 14 bits each, follow the signature of the lossless bitstream.
    sizes = struct.pack("<I", 15_999 | 15_999 << 14)
    tiff = zoo["tiff.tiff"]
    entries = struct.unpack("<I", tiff[4:8])[0]
    fields = {struct.unpack("<H", tiff[at : at + 2])[0]: at for at in range(entries + 2, entries + 2 + 12 * struct.unpack("<H", tiff[entries : entries + 2])[0], 12)}
    wide = struct.pack("<HII", 4, 1, side)
    brand = b"\0\0\0\x18ftyp%s\0\0\0\0mif1miaf"
    float_tiff = encode(Image.fromarray(np.linspace(0, 1, 36 * 24, dtype=np.float32).reshape(24, 36)), "TIFF")
    middle = len(png) // 2
    too_large, broken, unknown = "image_too_large/", "undecodable_image/", "unsupported_format/"
    return {
        too_large + "pixels.png": png[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + png[33:],
        too_large + "pixels.jpg": patched("jpeg_420.jpg", (frame + 5, struct.pack(">HH", side, side))),
        too_large + "pixels.bmp": patched("bmp.bmp", (18, little + little)),
        too_large + "pixels.gif": patched("gif.gif", (6, struct.pack("<HH", side, side))),
        too_large + "pixels.webp": patched("webp_lossless.webp", (webp.index(b"VP8L") + 9, sizes)),
        too_large + "pixels.tiff": patched("tiff.tiff", (fields[256] + 2, wide), (fields[257] + 2, wide), (fields[278] + 2, wide)),
        too_large + "side.png": sized(70_000, 1),
        broken + "half.jpg": jpeg[: len(jpeg) // 2],
        broken + "half.png": png[:middle],
        broken + "half.webp": webp[: len(webp) // 2],
        broken + "half.gif": zoo["gif.gif"][: len(zoo["gif.gif"]) // 2],
        broken + "half.bmp": zoo["bmp.bmp"][: len(zoo["bmp.bmp"]) // 2],
        broken + "half.tiff": tiff[: len(tiff) // 2],
        broken + "checksum.png": png[:middle] + bytes([png[middle] ^ 0xFF]) + png[middle + 1 :],
        broken + "no_components.jpg": patched("jpeg_420.jpg", (frame + 9, b"\0")),
        broken + "no_tables.jpg": jpeg[:tables] + jpeg[frame:],
        broken + "no_scan.jpg": jpeg[:scan] + b"\xff\xd9",
        broken + "no_pixels.png": sized(0, 5),
        broken + "many_scans.jpg": jpeg[:-2] + jpeg[scan : scan + 14] * 200 + b"\xff\xd9",
        broken + "bomb.png": sized(5_000, 5_000),
        broken + "header_only.png": png[:33],
        broken + "header_only.gif": zoo["gif.gif"][:13],
        broken + "directory_outside.tiff": patched("tiff.tiff", (4, b"\xff\xff\xff\x7f")),
        unknown + "avif.avif": brand % b"avif" + bytes(64),
        unknown + "heic.heic": brand % b"heic" + bytes(64),
        unknown + "svg.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        unknown + "text.jpg": b"this is a text, whatever its name says",
        unknown + "empty.jpg": b"",
        unknown + "float.tiff": float_tiff,
        unknown + "palette.tiff": encode(photo().quantize(32), "TIFF", compression="tiff_lzw"),
        unknown + "lossless.jpg": patched("jpeg_420.jpg", (frame, b"\xff\xc3")),
        unknown + "twelve_bits.jpg": patched("jpeg_420.jpg", (frame + 4, b"\x0c")),
    }


def sized(width: int, height: int) -> bytes:
    """A PNG with this size in its header, but with only one row of data, which is much too short."""
    whole = png(max(width, 1), max(height, 1), 8, 2, b"\0" * max(height, 1))
    ihdr = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + whole[33:]


def deep_avif(data: bytes, bits: int) -> Image.Image:
    """An AVIF of more than 8 bits, rounded. Pillow asks libavif for 8 bits, which then rounds down, by 0.2 to 0.6
    levels on average."""
    levels = imagecodecs.avif_decode(data).astype(np.float64) * 255 / ((1 << bits) - 1)
    return Image.fromarray(np.round(levels).astype(np.uint8).squeeze())


def reference(data: bytes, name: str) -> Image.Image:
    deep = re.search("avif_(10|12)", name)
    if deep:
        return Image.fromarray(convert_to_rgb(deep_avif(data, int(deep[1])), return_numpy=True))
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        # Pillow's conversion of I;16 to RGB clips at 255, which makes the image white. For 16-bit
        # colour Pillow keeps the upper byte, so this does the same.
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    return Image.fromarray(convert_to_rgb(image, return_numpy=True))


def resize(data: bytes, name: str, size: int) -> Image.Image:
    """The reference at `size` × `size`, converted to sRGB if the name marks it as wide-gamut."""
    resized = reference(data, name).resize((size, size), BICUBIC)
    if "_icc_" not in name or "srgb" in name:
        return resized
    source = ImageCms.ImageCmsProfile(io.BytesIO(Image.open(io.BytesIO(data)).info["icc_profile"]))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.profileToProfile(resized, source, ImageCms.createProfile("sRGB"), intent)


def main() -> None:
    for folder in ("zoo", "resized", "decoded", "photos"):
        (HERE / folder).mkdir(exist_ok=True)
    rgb = photo()
    zoo = {**jpegs(rgb), **pngs(rgb), **others(rgb), **avifs(rgb)}
    for name, data in refused(zoo).items():
        path = HERE / "refused" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name, data in zoo.items():
        (HERE / "zoo" / name).write_bytes(data)
        if name.endswith(".avif"):
            reference(data, name).save(HERE / "decoded" / f"{name.split('.')[0]}.png", optimize=True)
        resized = resize(data, name, SIZE)
        resized.save(HERE / "resized" / f"{name.split('.')[0]}.png", optimize=True)
    for path in sorted(PHOTOS.glob("*.jpg")):
        resized = reference(path.read_bytes(), path.name).resize((PHOTO_SIZE, PHOTO_SIZE), BICUBIC)
        resized.save(HERE / "photos" / f"{path.stem}.png", optimize=True)
    resized = resize((PHOTOS / "rocket.jpg").read_bytes(), "rocket_icc_adobe", PHOTO_SIZE)
    resized.save(HERE / "photos" / "rocket_icc.png", optimize=True)
    for resample in list(Image.Resampling)[:6]:
        resized = Image.open(PHOTOS / "coffee.jpg").resize((SIZE, SIZE), resample)
        resized.save(HERE / "photos" / f"coffee_resample_{resample.value}.png", optimize=True)
    # At the model's input size, where resizing averages less. Keeps the 32 rows that differ most.
    whole = Image.open(PHOTOS / "coffee.jpg").resize((384, 384), BICUBIC)
    whole.crop((0, ROWS_384[0], 384, ROWS_384[1])).save(HERE / "photos" / "coffee_384_rows.png", optimize=True)
    rgb.resize((90, 61), BICUBIC).save(HERE / "photos" / "upscaled.png", optimize=True)
    processor = BlipImageProcessorPil(size={"height": VALUES_SIZE, "width": VALUES_SIZE})
    values = processor(Image.open(PHOTOS / "coffee.jpg"), return_tensors="np")["pixel_values"]
    assert values.shape == (1, 3, VALUES_SIZE, VALUES_SIZE), values.shape
    (HERE / "pixel_values.bin").write_bytes(values.astype("<f4").tobytes())


if __name__ == "__main__":
    main()
