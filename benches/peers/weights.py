"""BLIP base with seeded random weights, and images to caption. Every program gets the same ones."""

import numpy
import torch
from transformers import BlipConfig, BlipForConditionalGeneration

SIDE = 384
START, END = 30522, 102  # token ids of the decoder: its first token, and the one that ends a caption


def config(layers=12):
    """Salesforce/blip-image-captioning-base, as transformers describes it; fewer layers make it another model."""
    vision = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=12,
                  image_size=SIDE, patch_size=16)
    text = dict(hidden_size=768, encoder_hidden_size=768, intermediate_size=3072, num_hidden_layers=layers,
                num_attention_heads=12, vocab_size=30524, max_position_embeddings=512,
                bos_token_id=START, sep_token_id=END, eos_token_id=2, pad_token_id=0)
    return BlipConfig(vision_config=vision, text_config=text)


def make(folder, seed=20, layers=12):
    """Writes config.json and model.safetensors.

    The scales keep the hidden states of every layer near one. With transformers' initial weights the
    captions would not depend on the image, and quantisers would see ranges that no trained model has.
    """
    model = BlipForConditionalGeneration(config(layers)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_scaled(name, noise))
    model.save_pretrained(folder)


def _scaled(name, noise):
    if name.endswith("bias"):
        return 0.02 * noise
    if "norm" in name.lower():
        return 1 + 0.1 * noise
    if name.endswith("word_embeddings.weight"):  # small, because otherwise the tied head would repeat its input
        return 0.04 * noise
    if name.endswith("embedding") or "_embeddings." in name:
        return 0.5 * noise
    # Branches are weaker than the residual stream; otherwise twelve layers would make all tokens alike.
    gain = 0.3 if "output.dense" in name else 1.0
    return gain * noise / noise[0].numel() ** 0.5


def load(folder, dtype=torch.float32):
    return BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()


def images(count, seed=0):
    """Smooth blobs around zero, like normalised photos: `count` × 3 × 384 × 384, f32."""
    generator = torch.Generator().manual_seed(seed)
    knots = 4 * torch.rand((count, 3, 13, 13), generator=generator) - 2
    smooth = torch.nn.functional.interpolate(knots, size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    return numpy.ascontiguousarray(smooth.numpy())
