"""Goes on from an exported model: its folder is the resumable state that is committed while a training runs for hours.

Half-precision weights and no optimiser moments: the first steps after it are a little rougher than after a real state.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..judge import JudgeNet
from . import autoencoder, clip, judge, loop, unet

STEPS_FILE = "training.json"
FILES = {
    "clip": ("text_encoder/model", "image_encoder/model", "text_projection"),
    "autoencoder": ("vae/diffusion_pytorch_model",),
    "judge": ("judge",),
    "unet": ("unet/diffusion_pytorch_model",),
}
NEW = {"clip": clip.new_clip, "autoencoder": autoencoder.new_autoencoder, "judge": JudgeNet, "unet": unet.new_unet}
PART_STEPS = {"clip": clip.STEPS, "autoencoder": autoencoder.STEPS, "judge": judge.STEPS, "unet": unet.STEPS}


def _tensors(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: t.float() for name in names for key, t in load_file(folder / f"{name}.safetensors").items()}


def _write_state(name: str, model: nn.Module, step: int) -> None:
    weights = [p for p in model.parameters() if p.requires_grad]
    fresh = loop.new_optimizer(weights, 0.0)
    loop.save_state(loop.STATE_DIR / f"{name}.pt", step, weights, [w.detach().clone() for w in weights], fresh)


def resume_from(folder: Path) -> dict[str, int]:
    """Make training states of the parts of an exported model that have none yet.

    Returns:
        For each part that was taken over, the optimiser steps behind it.

    Raises:
        FileNotFoundError: the folder was not exported by ``export``.
    """
    steps: dict[str, int] = json.loads((folder / STEPS_FILE).read_text(encoding="utf-8"))
    taken = {}
    for name, step in steps.items():
        if not step or (loop.STATE_DIR / f"{name}.pt").exists():
            continue
        model = NEW[name]()
        model.load_state_dict(_tensors(folder, FILES[name]))
        with torch.no_grad():
            _write_state(name, model, step)
            if name == "clip":  # the exported weights are the blend of both phases, and so is a blend of two of them
                _write_state("clip_pictures", model, clip.PICTURE_STEPS)
        taken[name] = step
    return taken
