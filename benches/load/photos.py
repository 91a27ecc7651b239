"""Distinct photos made from those in assets, and the captions that `cutline caption` writes for them."""

import json
import random
import subprocess
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

PHOTOS = Path(__file__).parent.parent.parent / "assets"


def make(folder, count, size=(320, 240)):
    """Makes `count` photos of about 15 KB, the same ones in every run: cropped, mirrored, and with changed
    brightness."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    if all(path.exists() for path in paths):
        return paths
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    chance = random.Random(4)
    for number, path in enumerate(paths):
        source = sources[number % len(sources)]
        width, height = source.size
        share = chance.uniform(0.4, 1.0)
        left = chance.uniform(0, 1 - share) * width
        top = chance.uniform(0, 1 - share) * height
        photo = source.crop((int(left), int(top), int(left + share * width), int(top + share * height)))
        if chance.random() < 0.5:
            photo = ImageOps.mirror(photo)
        photo = ImageEnhance.Brightness(photo).enhance(chance.uniform(0.6, 1.4))
        photo.resize(size).save(path, quality=85)
    return paths


def large(folder, size):
    """A photo of at least `size` bytes, and only slightly more."""
    path = folder / "large.jpg"
    source = Image.open(PHOTOS / "cat.jpg").convert("RGB")
    side = 600
    while not path.exists() or path.stat().st_size < size:
        source.resize((side, side * 2 // 3), Image.Resampling.LANCZOS).save(path, quality=92)
        side += 50
    return path


def captions(cutline, paths, options, parameters):
    """The caption that `cutline caption` writes for each photo."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in parameters.items()]
    command = [cutline, "caption", "--format", "jsonl", *options, *words, *map(str, paths)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line)["caption"] for line in lines.splitlines()]
