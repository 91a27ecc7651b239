"""The vision tower in two parts: a frozen trunk, run once, and the last layers, which are trained.

It uses the parameters of `BlipVisionModel`. Matrix products are in bfloat16, the residual stream and the
layer norms in float32.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration

import common


def layer_forward(layer: nn.Module, hidden: Tensor) -> Tensor:
    """One pre-norm layer; [photos, tokens, width] in float32."""
    attention = layer.self_attn
    photos, tokens, width = hidden.shape
    kind = attention.qkv.weight.dtype
    qkv = attention.qkv(layer.layer_norm1(hidden).to(kind)).view(photos, tokens, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(photos, tokens, width)
    hidden = hidden + attention.projection(mixed)
    return hidden + layer.mlp(layer.layer_norm2(hidden).to(kind))


def half(tower: nn.Module) -> nn.Module:
    """Converts the matrices to bfloat16, but not the embeddings and layer norms."""
    for module in tower.encoder.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
    return tower


class Tail(nn.Module):
    """The tower's last layers and its final norm, applied to the output of the trunk."""

    def __init__(self, tower: nn.Module, trained: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(tower.encoder.layers[len(tower.encoder.layers) - trained:])
        self.norm = tower.post_layernorm

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer_forward(layer, hidden)
        return self.norm(hidden)

    @classmethod
    def of(cls, start: Path) -> "Tail":
        return cls(BlipForConditionalGeneration.from_pretrained(start).vision_model.eval(), common.TRAINED)

    def install(self, tower: nn.Module) -> None:
        """Writes the trained weights back into the model."""
        for mine, theirs in zip(self.layers, tower.encoder.layers[-len(self.layers):]):
            theirs.load_state_dict(mine.state_dict())
        tower.post_layernorm.load_state_dict(self.norm.state_dict())


def trunk(tower: nn.Module, pixels: Tensor, trained: int = common.TRAINED) -> Tensor:
    hidden = tower.embeddings(pixels)
    for layer in tower.encoder.layers[:len(tower.encoder.layers) - trained]:
        hidden = layer_forward(layer, hidden)
    return hidden
