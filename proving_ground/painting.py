"""Pictures of the bundled model, by the product's own sampler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from erasure_core import PictureModel, sample
from erasure_core.cli.terminal import load_model as load
from erasure_core.hosts.diffusers import DiffusersModel

from .tokens import MODEL_DIR

BATCH = 64
STEPS = 25
GUIDANCE = 2.5


def load_model(folder: Path = MODEL_DIR) -> DiffusersModel:
    """The bundled model, or another of its kind, on the CPU in float32."""
    return load(folder, "cpu")


def paint(
    model: PictureModel, prompts: Sequence[str], seeds: Sequence[int], steps: int = STEPS, guidance: float = GUIDANCE
) -> Tensor:
    """One picture for each prompt and seed; what hangs on the model takes part.

    Returns:
        uint8 pictures [len(prompts), 3, 64, 64].
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"one seed per prompt is needed, got {len(seeds)} seeds for {len(prompts)} prompts")
    pictures = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="painting", leave=False, disable=len(prompts) <= BATCH):
        rows = slice(start, start + BATCH)
        pictures.append(model.decode(sample(model, prompts[rows], seeds[rows], steps, guidance)))
    return torch.cat(pictures)
