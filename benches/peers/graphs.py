"""BLIP as two graphs, in a form that graph runtimes execute efficiently.

One graph runs once per image: the vision tower and the cross-attention keys and values. The other runs
one decode step with a KV cache. Attention uses `scaled_dot_product_attention`, which the exporters
support, instead of transformers' own code. `check` compares both graphs with transformers.
"""

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


def heads(x, count):
    """[batch, n, width] to [batch, heads, n, width / heads]."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def attend(query, key, value):
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class ImageGraph(nn.Module):
    """Maps pixels to the keys and values of every decoder layer, in turn: [batch, heads, 577, 64] each."""

    def __init__(self, model):
        super().__init__()
        self.tower = model.vision_model
        self.crosses = nn.ModuleList(layer.crossattention.self for layer in model.text_decoder.bert.encoder.layer)

    def forward(self, pixels):
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = embeddings.class_embedding.expand(pixels.shape[0], 1, -1)
        x = torch.cat([first, patches], 1) + embeddings.position_embedding
        for layer in self.tower.encoder.layers:
            x = x + self.attention(layer.self_attn, layer.layer_norm1(x))
            x = x + layer.mlp.fc2(gelu(layer.mlp.fc1(layer.layer_norm2(x))))
        x = self.tower.post_layernorm(x)
        pairs = [(cross.key(x), cross.value(x)) for cross in self.crosses]
        return tuple(heads(part, cross.num_attention_heads)
                     for pair, cross in zip(pairs, self.crosses) for part in pair)

    @staticmethod
    def attention(block, x):
        query, key, value = block.qkv(x).chunk(3, -1)
        return block.projection(attend(*(heads(part, block.num_heads) for part in (query, key, value))))


class TokenGraph(nn.Module):
    """Maps a token, its position, KV caches and cross-attention tensors to logits and extended caches."""

    def __init__(self, model):
        super().__init__()
        self.bert = model.text_decoder.bert
        self.head = model.text_decoder.cls

    def forward(self, token, position, past, cross):
        embeddings = self.bert.embeddings
        x = embeddings.word_embeddings(token) + embeddings.position_embeddings(position)
        x = embeddings.LayerNorm(x)
        grown = []
        for n, layer in enumerate(self.bert.encoder.layer):
            block = layer.attention.self
            query, *new = (heads(part(x), block.num_attention_heads) for part in (block.query, block.key, block.value))
            pair = [torch.cat([old, more], 2) for old, more in zip(past[2 * n : 2 * n + 2], new)]
            grown += pair
            x = self.closed(layer.attention.output, attend(query, *pair), x)
            query = heads(layer.crossattention.self.query(x), block.num_attention_heads)
            x = self.closed(layer.crossattention.output, attend(query, cross[2 * n], cross[2 * n + 1]), x)
            x = self.closed(layer.output, gelu(layer.intermediate.dense(x)), x)
        return (self.head(x)[:, 0], *grown)

    @staticmethod
    def closed(output, x, residual):
        return output.LayerNorm(output.dense(x) + residual)


def names(model):
    """Names of the graphs' tensors: KV caches and cross-attention keys and values, two per layer."""
    layers = range(model.config.text_config.num_hidden_layers)
    return [[f"{what}_{part}_{n}" for n in layers for part in ("key", "value")] for what in ("past", "cross")]


def no_past(model, batch):
    text = model.config.text_config
    shape = (batch, text.num_attention_heads, 0, text.hidden_size // text.num_attention_heads)
    return tuple(torch.zeros(shape) for _ in range(2 * text.num_hidden_layers))


@torch.no_grad()
def check(model, pixels, ids):
    """The largest difference from transformers' logits, token by token."""
    states = model.vision_model(pixels)[0]
    expected = model.text_decoder(input_ids=ids, encoder_hidden_states=states).logits
    token_graph, cross, past = TokenGraph(model), ImageGraph(model)(pixels), no_past(model, len(ids))
    worst = 0.0
    for n in range(ids.shape[1]):
        logits, *past = token_graph(ids[:, n : n + 1], torch.tensor([[n]]), tuple(past), cross)
        worst = max(worst, (logits - expected[:, n]).abs().max().item())
    return worst
