"""Captions a photo with the generated client. Usage: python client.py URL PHOTO"""

import sys

from cutline_client import Client
from cutline_client.api.captions import caption_batch, generate_caption
from cutline_client.api.operation import model_info
from cutline_client.models import BatchForm, Caption, CaptionForm
from cutline_client.types import File

url, path = sys.argv[1:]
with Client(base_url=url) as client, open(path, "rb") as photo:
    model = model_info.sync(client=client)
    image = File(payload=photo, file_name="photo.jpg", mime_type="image/jpeg")
    body = CaptionForm(image=image, num_beams=3)
    caption = generate_caption.sync(client=client, body=body)
    assert isinstance(caption, Caption), caption
    assert caption.caption and caption.model == model.id, caption
    assert caption.colors and 0 <= caption.mood.valence <= 1, caption
    photo.seek(0)
    answer = caption_batch.sync(client=client, body=BatchForm(images=[image], num_beams=3))
    assert [item.caption for item in answer.results] == [caption.caption], answer
    print(f"{path}: {caption.caption} ({caption.captions[0].confidence:.2f})")
