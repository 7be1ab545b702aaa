"""One training loop for every part of the bundled model: seeded per step, resumable, with a running average."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

STATE_DIR = Path(__file__).parent.parent / ".training"
SAVE_EVERY = 300.0
"""Seconds between two saves of the resumable state."""


def cosine_rate(step: int, steps: int, peak: float, warm_up: int = 200) -> float:
    """Learning rate: linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))))


def mixed_precision() -> torch.autocast:
    """bfloat16 where the processor computes in it; elsewhere that is emulated and takes fifteen times as long."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(torch.cpu.get_capabilities().get("avx512_bf16")))


def _update_average(average: list[Tensor], weights: list[Tensor], step: int, decay: float) -> None:
    """Exponential running average; short at first so that the start is forgotten."""
    torch._foreach_lerp_(average, weights, 1 - min(decay, (step + 1) / (step + 10)))


def new_optimizer(weights: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, whose rate the loop sets anew at each step."""
    return torch.optim.AdamW(weights, weight_decay=weight_decay, betas=(0.9, 0.98), foreach=True)


def train(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    peak_rate: float,
    decay: float = 0.999,
    weight_decay: float = 0.01,
    deadline: float | None = None,
) -> bool:
    """Train ``model`` until ``steps`` and leave the running average of its weights in it.

    Args:
        name: names the state file, from which an interrupted training continues.
        model: trained in place.
        loss_at: the loss of one step. It must draw all chance from the step number, so that a resumed training
            sees what an undisturbed one would.
        steps: optimiser steps in all.
        peak_rate: AdamW's learning rate after warm-up.
        decay: of the running average, per step.
        weight_decay: AdamW's.
        deadline: ``time.monotonic()`` at which to save and stop.

    Returns:
        Whether the training is complete.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = new_optimizer(weights, weight_decay)
    average = [w.detach().clone() for w in weights]
    path, first = STATE_DIR / f"{name}.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        first = state["step"]
        with torch.no_grad():
            torch._foreach_copy_(weights, state["weights"])
            torch._foreach_copy_(average, state["average"])
        optimizer.load_state_dict(state["optimizer"])
    saved = time.monotonic()
    progress = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=15, smoothing=0.05)
    running = None
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, peak_rate)
        torch.manual_seed(step)
        loss = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            _update_average(average, weights, step, decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        progress.set_postfix_str(f"loss {running:.4f}", refresh=False)
        now = time.monotonic()
        out_of_time = deadline is not None and now > deadline
        if out_of_time or step + 1 == steps or now - saved > SAVE_EVERY:
            save_state(path, step + 1, weights, average, optimizer)
            saved = now
        if out_of_time:
            return False
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
    return True


def save_state(
    path: Path, step: int, weights: Sequence[Tensor], average: list[Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Write the resumable state, through a temporary name."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    state = {
        "step": step,
        "weights": [w.detach() for w in weights],
        "average": average,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, part)
    os.replace(part, path)
