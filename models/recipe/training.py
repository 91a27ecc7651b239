"""Shared parts of the training loops: optimiser, schedule, weight average, resumable checkpoints."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration

from vision import Tail


def label_smoothed(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each position."""
    logp = F.log_softmax(logits, dim=-1)
    nll = -logp.gather(1, targets[:, None]).squeeze(1)
    return nll if smoothing == 0 else (1 - smoothing) * nll - smoothing * logp.mean(-1)


def half_products(enabled: bool = True) -> torch.autocast:
    """Matrix products in bfloat16; parameters, sums, norms and losses stay in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def load_parts(source: Path, trained: int) -> dict[str, dict[str, Tensor]]:
    """The decoder and the tower's tail, from a checkpoint of a training step or from a model folder."""
    if source.is_file():
        state = torch.load(source, map_location="cpu", weights_only=False)
        return {"decoder": state["decoder"], "tail": state["tail"]}
    model = BlipForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    return {"decoder": model.text_decoder.state_dict(), "tail": Tail(model.vision_model, trained).state_dict()}


class Loop:
    """Runs training steps. The learning rate warms up linearly to `rate`, then follows a cosine to a twentieth.

    `modules` maps names to modules and their shares of the learning rate; a share of 0 freezes the module.
    With `minutes`, the time ends the run instead of the number of steps; a resumed run goes on with its time.
    """

    def __init__(self, modules: dict[str, tuple[nn.Module, float]], out: Path, steps: int, rate: float, warmup: int,
                 decay: float = 0.05, average: float = 0.995, clip: float = 1.0, minutes: float | None = None) -> None:
        self.modules = {name: module for name, (module, _) in modules.items()}
        self.out, self.steps, self.rate, self.warmup = out, steps, rate, warmup
        self.average, self.clip, self.minutes, self.before = average, clip, minutes, 0.0
        self.parameters: list[nn.Parameter] = []
        groups = []
        for module, share in modules.values():
            own = [p for p in module.parameters() if p.requires_grad_(share > 0).requires_grad]
            self.parameters += own
            for params, weight_decay in (([p for p in own if p.ndim > 1], decay), ([p for p in own if p.ndim <= 1], 0.0)):
                if params:
                    groups.append(dict(params=params, weight_decay=weight_decay, share=share))
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.step, self.began, self.cpu = 0, time.time(), time.process_time()
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.out, map_location="cpu", weights_only=False)
        for name, module in self.modules.items():
            module.load_state_dict(state[f"{name}_raw"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shadow, self.step, self.before = state["shadow"], state["step"], state["spent"]
        torch.manual_seed(self.step)
        print(f"resumed at step {self.step}", flush=True)

    def spent(self) -> float:
        """Minutes since the first step, without those between a stop and its resumption."""
        return self.before + (time.time() - self.began) / 60

    def progress(self) -> float:
        """The part of the run that is done, from 0 to 1."""
        return min(1.0, self.spent() / self.minutes if self.minutes else self.step / self.steps)

    def learning_rate(self) -> float:
        if self.step < self.warmup:
            return self.rate * (self.step + 1) / self.warmup
        return self.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.progress())))

    def update(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["share"]
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(self.average, self.step / (self.step + 10))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - keep)

    def swap(self) -> None:
        """Swaps the weights with their running average."""
        for p, s in zip(self.parameters, self.shadow):
            p.data, s.data = s.data, p.data

    def save(self) -> None:
        """Saves each module's average under its name, and its current weights under `<name>_raw`."""
        def copies() -> dict[str, dict]:
            return {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in self.modules.items()}
        raw = {f"{name}_raw": state for name, state in copies().items()}
        self.swap()
        averaged = copies()
        self.swap()
        state = dict(**averaged, **raw, optimizer=self.optimizer.state_dict(), shadow=self.shadow, step=self.step, spent=self.spent())
        temporary = self.out.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.out)

    def report(self, **values: float) -> None:
        spent = f"{(time.time() - self.began) / 60:.1f} min, {(time.process_time() - self.cpu) / 60:.1f} CPU min"
        text = " ".join(f"{k} {v:.4f}" for k, v in values.items())
        print(f"step {self.step} ({self.progress():.1%}) lr {self.learning_rate():.2e} {text} [{spent}]", flush=True)
