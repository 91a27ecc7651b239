"""The first session of docs/python.md: checked by mypy, and run by a test."""

from pathlib import Path

import cutline

captioner = cutline.Captioner()
info = captioner.info
print(info["id"], info["parameters"], info["input_size"])

photos = sorted(Path("assets").glob("*.jpg"))
for photo, row in zip(photos, captioner.stream(photos)):
    if "caption" in row:
        print(f"{photo.name}: {row['caption']}")
    else:
        print(f"{photo.name}: {row['error']['code']}")

cat = captioner.caption(photos[1], prompt="a photo of", num_beams=3)
print(cat["caption"], cat["image"]["width"], cat["image"]["height"])
print([color["name"] for color in cat.get("colors", [])])

try:
    captioner.caption(b"no image")
except cutline.CutlineError as error:
    print(error.code, "-", error)
