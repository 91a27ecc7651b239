"""Runs the weights of BlipTextLMHeadModel fast on a CPU: packed training, cached sampling, beam search.

It uses the parameters of the transformers module; only the order of operations differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel


@dataclass
class Packed:
    """Captions without padding: the token, target and index in padded layouts of each position."""

    tokens: Tensor  # [N]
    targets: Tensor  # [N]
    positions: Tensor  # [N]
    by_caption: Tensor  # [N] index into [captions * longest]
    by_photo: Tensor  # [N] index into [photos * most tokens of a photo]
    captions: int
    longest: int
    photos: int
    most: int
    owner: Tensor  # [N] the caption that each position belongs to


def pack(groups: list[list[list[int]]], dec: int, sep: int) -> Packed:
    """`groups` holds each photo's captions as token ids, without [DEC] and [SEP]."""
    captions = [ids for group in groups for ids in group]
    longest = max(len(ids) for ids in captions) + 1
    sizes = [sum(len(ids) + 1 for ids in group) for group in groups]
    tokens, targets, positions, by_caption, by_photo, owner = [], [], [], [], [], []
    row = 0
    for photo, group in enumerate(groups):
        offset = photo * max(sizes)
        for ids in group:
            n = len(ids) + 1
            tokens += [dec, *ids]
            targets += [*ids, sep]
            positions += range(n)
            by_caption += range(row * longest, row * longest + n)
            by_photo += range(offset, offset + n)
            owner += [row] * n
            offset, row = offset + n, row + 1
    columns = [torch.tensor(c) for c in (tokens, targets, positions, by_caption, by_photo)]
    return Packed(*columns, len(captions), longest, len(groups), max(sizes), torch.tensor(owner))


def spread(x: Tensor, index: Tensor, rows: int, columns: int) -> Tensor:
    """Scatters [N, width] into a zero tensor [rows, heads, columns, 64]."""
    padded = x.new_zeros(rows * columns, x.shape[1]).index_copy(0, index, x)
    return padded.view(rows, columns, -1, 64).transpose(1, 2)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """The inverse of `spread`."""
    return x.transpose(1, 2).reshape(-1, x.shape[1] * x.shape[3])[index]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.matmul(query * 0.125, key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)


KeyValue = tuple[Tensor, Tensor]


class Decoder(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.model = BlipTextLMHeadModel(config.text_config)
        self.model.tie_weights()
        self.dec, self.sep = config.text_config.bos_token_id, config.text_config.sep_token_id
        self.bert = self.model.bert
        self.layers = self.bert.encoder.layer

    def load(self, checkpoint: Path, key: str = "decoder") -> dict:
        state = torch.load(checkpoint, map_location="cpu", weights_only=False)
        self.model.load_state_dict(state[key])
        return state

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        e = self.bert.embeddings
        return e.LayerNorm(e.word_embeddings(tokens) + e.position_embeddings(positions))

    def head(self, x: Tensor) -> Tensor:
        predictions = self.model.cls.predictions
        return F.linear(predictions.transform(x), self.bert.embeddings.word_embeddings.weight, predictions.bias)

    def forward(self, batch: Packed, cross: list[KeyValue] | None, dropout: float = 0.0) -> Tensor:
        """Logits [N, vocabulary]; `cross` comes from `look`, or is None for the language model."""

        def drop(y: Tensor) -> Tensor:
            return F.dropout(y, dropout) if dropout else y

        causal = torch.full((batch.longest, batch.longest), -1e9).triu(1)
        x = drop(self.embed(batch.tokens, batch.positions))
        for i, layer in enumerate(self.layers):
            own, out = layer.attention.self, layer.attention.output
            q, k, v = (spread(f(x), batch.by_caption, batch.captions, batch.longest) for f in (own.query, own.key, own.value))
            x = out.LayerNorm(drop(out.dense(gather(attend(q, k, v, causal), batch.by_caption))) + x)
            if cross is not None:
                query, out = layer.crossattention.self.query, layer.crossattention.output
                q = spread(query(x), batch.by_photo, batch.photos, batch.most)
                x = out.LayerNorm(drop(out.dense(gather(attend(q, *cross[i]), batch.by_photo))) + x)
            hidden = F.gelu(layer.intermediate.dense(x))
            x = layer.output.LayerNorm(drop(layer.output.dense(hidden)) + x)
        return self.head(x)

    def look(self, vision: Tensor) -> list[KeyValue]:
        """The cross-attention keys and values of each layer, from vision tokens [photos, tokens, width]."""
        photos, tokens, _ = vision.shape
        pairs = []
        for layer in self.layers:
            cross = layer.crossattention.self
            key, value = (f(vision).view(photos, tokens, -1, 64).transpose(1, 2) for f in (cross.key, cross.value))
            pairs.append((key, value))
        return pairs


class Cache:
    """The KV cache for decoding `per_photo` rows per photo."""

    def __init__(self, decoder: Decoder, cross: list[KeyValue], per_photo: int) -> None:
        self.decoder, self.cross, self.per_photo = decoder, cross, per_photo
        self.photos = cross[0][0].shape[0]
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * len(self.cross)
        self.length = 0

    def step(self, tokens: Tensor) -> Tensor:
        """The logits after one more token per row."""
        d, rows = self.decoder, tokens.shape[0]
        x = d.embed(tokens, torch.full_like(tokens, self.length))
        for i, layer in enumerate(d.layers):
            own, out = layer.attention.self, layer.attention.output
            q, k, v = (f(x).view(rows, 1, -1, 64).transpose(1, 2) for f in (own.query, own.key, own.value))
            if self.own[i] is not None:
                k, v = (torch.cat(pair, 2) for pair in zip(self.own[i], (k, v)))
            self.own[i] = (k, v)
            x = out.LayerNorm(out.dense(attend(q, k, v).reshape(rows, -1)) + x)
            query, out = layer.crossattention.self.query, layer.crossattention.output
            q = query(x).view(self.photos, self.per_photo, -1, 64).transpose(1, 2)
            mixed = attend(q, *self.cross[i]).transpose(1, 2).reshape(rows, -1)
            x = out.LayerNorm(out.dense(mixed) + x)
            x = layer.output.LayerNorm(layer.output.dense(F.gelu(layer.intermediate.dense(x))) + x)
        self.length += 1
        return d.head(x)

    def reorder(self, rows: Tensor) -> None:
        self.own = [(k[rows], v[rows]) for k, v in self.own]


@torch.no_grad()
def sample(decoder: Decoder, cross: list[KeyValue], each: int, temperature: float = 1.0, longest: int = 20) -> list[list[int]]:
    """Samples `each` captions per photo."""
    cache = Cache(decoder, cross, each)
    rows = cache.photos * each
    tokens = torch.full((rows,), decoder.dec)
    ended = torch.zeros(rows, dtype=torch.bool)
    captions: list[list[int]] = [[] for _ in range(rows)]
    for _ in range(longest):
        shares = torch.softmax(cache.step(tokens).float() / temperature, dim=-1).cumsum(-1)
        drawn = torch.rand(rows, 1) * shares[:, -1:]
        tokens = torch.searchsorted(shares, drawn).squeeze(1).clamp(max=shares.shape[1] - 1)
        ended |= tokens == decoder.sep
        for row in (~ended).nonzero().flatten().tolist():
            captions[row].append(int(tokens[row]))
        if bool(ended.all()):
            break
    return captions


@torch.no_grad()
def beam_search(decoder: Decoder, vision: Tensor, beams: int = 3, longest: int = 20, shortest: int = 5,
                penalty: float = 1.0) -> list[list[int]]:
    """Beam search as in transformers: a caption's score is its log-probability by its length to the power of `penalty`.

    With one beam it is greedy decoding.
    """
    photos = vision.shape[0]
    cache = Cache(decoder, decoder.look(vision), beams)
    scores = torch.full((photos, beams), -1e9)
    scores[:, 0] = 0
    texts: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(photos)]
    best: list[tuple[float, list[int]]] = [(-math.inf, [])] * photos
    done = [0] * photos
    tokens = torch.full((photos * beams,), decoder.dec)
    for length in range(1, longest + 1):
        logp = torch.log_softmax(cache.step(tokens), dim=-1)
        if length <= shortest:
            logp[:, decoder.sep] = -1e9
        vocabulary = logp.shape[1]
        total = (scores.view(-1, 1) + logp).view(photos, beams * vocabulary)
        top, index = total.topk(2 * beams, dim=1)
        order, following = [], []
        for p in range(photos):
            alive = []
            for rank, (value, flat) in enumerate(zip(top[p].tolist(), index[p].tolist())):
                beam, token = divmod(flat, vocabulary)
                if token == decoder.sep:
                    if rank < beams:
                        done[p] += 1
                        best[p] = max(best[p], (value / length**penalty, texts[p][beam]), key=lambda pair: pair[0])
                elif len(alive) < beams:
                    alive.append((value, beam, token))
            scores[p] = torch.tensor([a[0] for a in alive])
            texts[p] = [[*texts[p][beam], token] for _, beam, token in alive]
            order += [p * beams + beam for _, beam, _ in alive]
            following += [token for _, _, token in alive]
        if all(n >= beams for n in done):
            break
        cache.reorder(torch.tensor(order))
        tokens = torch.tensor(following)
    for p in range(photos):
        if done[p] < beams:
            best[p] = max([best[p], *((float(s) / longest**penalty, t) for s, t in zip(scores[p], texts[p]))], key=lambda pair: pair[0])
    return [text for _, text in best]
