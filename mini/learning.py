"""Steps of AdamW from an objective, resumed after any stop."""

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

SAVE_EVERY = 120.0
# Losses are shown after so many steps: reading them waits for the device.
SHOW_EVERY = 20

Batch = dict[str, Tensor]


class Objective(NamedTuple):
    """What a part learns from: the batch of a step, the same whoever makes it and when; and the named losses of a
    batch, whose sum is minimised.
    """

    batch: Callable[[int], Batch]
    losses: Callable[[Batch], dict[str, Tensor]]


def train(state: Path, modules: nn.Module, objective: Objective, steps: int, rate: float, device: torch.device) -> None:
    """AdamW with warm-up, cosine decay and an average of the weights, from ``state`` on.

    ``modules`` holds the averaged weights afterwards, on the processor.
    """
    update = Update(modules.to(device), objective.losses, device)
    first = update.load(state) if state.exists() else 0
    smooth: Tensor | None = None
    saved_at = time.monotonic()
    with tqdm(total=steps, initial=first, desc=state.stem, unit="step") as bar:
        for step in range(first, steps):
            update.rate.fill_(rate * min((step + 1) / 200, 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2))
            update.averaged.fill_(1 - min(0.999, (2 + step) / (11 + step)))
            losses = update(objective.batch(step))
            smooth = losses.clone() if smooth is None else smooth.lerp_(losses, 0.02)
            bar.update()
            if (step + 1) % SHOW_EVERY == 0:
                bar.set_postfix({name: f"{value:.3f}" for name, value in update.named(smooth).items()})
            if time.monotonic() - saved_at > SAVE_EVERY or step + 1 == steps:
                update.save(state, step + 1, smooth)
                saved_at = time.monotonic()
    modules.load_state_dict(update.average.state_dict())
    modules.cpu().eval()


class Update:
    """One step of the optimiser and of the averaged weights, on tensors that stay where they are.

    Attributes:
        rate, averaged: the learning rate, and how far the average moves to the new weights; numbers on the device.
    """

    def __init__(self, modules: nn.Module, losses: Callable[[Batch], dict[str, Tensor]], device: torch.device):
        self.modules, self.losses, self.device = modules, losses, device
        self.average = copy.deepcopy(modules).requires_grad_(False)
        self.averaged = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            modules.parameters(), lr=torch.zeros((), device=device), betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )  # fmt: skip
        self.names: list[str] = []

    @property
    def rate(self) -> Tensor:
        return self.optimizer.param_groups[0]["lr"]

    def __call__(self, batch: Batch) -> Tensor:
        """The losses, in the order of their names."""
        named = self.losses({name: tensor.to(self.device) for name, tensor in batch.items()})
        self.names = list(named)
        self.optimizer.zero_grad()
        losses = torch.stack(list(named.values()))
        losses.sum().backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            new_state = self.modules.state_dict()
            for kept, new in zip(self.average.state_dict().values(), new_state.values(), strict=True):
                kept.lerp_(new, self.averaged) if kept.is_floating_point() else kept.copy_(new)
        return losses.detach()

    def named(self, losses: Tensor) -> dict[str, float]:
        return dict(zip(self.names, losses.tolist(), strict=True))

    def load(self, state: Path) -> int:
        """Go on from a file; returns how many steps are done."""
        saved = torch.load(state, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(saved["modules"])
        self.average.load_state_dict(saved["average"])
        # Its rate and its device may be another's.
        saved["optimizer"]["param_groups"] = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(saved["optimizer"])
        return saved["step"]

    def save(self, state: Path, step: int, losses: Tensor) -> None:
        saved = {
            "step": step,
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = state.with_suffix(".part")
        torch.save(saved, temporary)
        os.replace(temporary, state)
        with open(state.with_suffix(".jsonl"), "a", encoding="utf-8") as log:
            rounded = {name: round(value, 4) for name, value in self.named(losses).items()}
            log.write(json.dumps({"step": step, **rounded}) + "\n")
