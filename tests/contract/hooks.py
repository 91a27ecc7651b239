"""Generates images for schemathesis, which cannot derive them from the schema."""

import base64
import io
import random

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def image(seed):
    """A small PNG of a few colours."""
    chance = random.Random(seed)
    size = (chance.randint(1, 40), chance.randint(1, 40))
    picture = Image.new("RGB", size)
    colors = [tuple(chance.randrange(256) for _ in range(3)) for _ in range(4)]
    picture.putdata([chance.choice(colors) for _ in range(size[0] * size[1])])
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@schemathesis.hook
def filter_case(_, case):
    """A form needs an image or its address, which its schema says in words only."""
    is_form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    is_valid = case.meta is not None and case.meta.generation.mode.value == "positive"
    return not (is_form and is_valid) or not {"image", "images", "image_url"}.isdisjoint(case.body)


seeds = st.integers(min_value=0, max_value=1 << 16)
schemathesis.openapi.format("byte", seeds.map(lambda seed: base64.b64encode(image(seed)).decode()))
for kind in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, seeds.map(image))
schemathesis.openapi.format("binary", seeds.map(image))
