"""The vision tower in two parts: a frozen trunk, run once, and the last layers, which are trained.

It uses the parameters of `BlipVisionModel`. Matrix products are in bfloat16, the residual stream and the
layer norms in float32.
"""

from __future__ import annotations

from collections.abc import Callable
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
    kind = torch.bfloat16 if attention.qkv.weight.dtype == torch.bfloat16 else torch.float32
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


class QuantizedLinear(nn.Module):
    """A linear layer in int8: one scale per output channel, and one per input row, found as it runs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-8)
        product = torch._int_mm((rows / scale).round().to(torch.int8), self.weight)
        return (product.float() * scale * self.scale + self.bias).view(*x.shape[:-1], -1)


def quantize(tower: nn.Module) -> nn.Module:
    """Converts the matrices to int8, which is several times faster where the processor has VNNI but no AMX."""
    for layer in tower.encoder.layers:
        layer.self_attn.qkv = QuantizedLinear(layer.self_attn.qkv)
        layer.self_attn.projection = QuantizedLinear(layer.self_attn.projection)
        layer.mlp.fc1, layer.mlp.fc2 = QuantizedLinear(layer.mlp.fc1), QuantizedLinear(layer.mlp.fc2)
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
    def of(cls, start: Path, trained: int = common.TRAINED) -> "Tail":
        model = BlipForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
        return cls(model.vision_model.eval(), trained)

    def install(self, tower: nn.Module) -> None:
        """Writes the trained weights back into the model."""
        for mine, theirs in zip(self.layers, tower.encoder.layers[len(tower.encoder.layers) - len(self.layers):]):
            theirs.load_state_dict(mine.state_dict())
        tower.post_layernorm.load_state_dict(self.norm.state_dict())


def trunk(tower: nn.Module, pixels: Tensor, trained: int = common.TRAINED,
          run: Callable[[nn.Module, Tensor], Tensor] = layer_forward) -> Tensor:
    hidden = tower.embeddings(pixels)
    for layer in tower.encoder.layers[:len(tower.encoder.layers) - trained]:
        hidden = run(layer, hidden)
    return hidden
