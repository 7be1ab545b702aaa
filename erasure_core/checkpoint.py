"""The resumable state of a training run, as one safetensors file beside the result."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import InvalidFile
from .fingerprint import fingerprint
from .safe_files import read_tensors, write_tensors
from .trajectory import TrajectoryPool

if TYPE_CHECKING:
    from .trainer import Trainer

FORMAT = "erasure-checkpoint-1"


def checkpoint_path(output: Path) -> Path:
    """Where the state of the training that makes ``output`` is kept until it is complete."""
    return output.with_name(output.name + ".partial")


def _identity(trainer: Trainer) -> str:
    """What must be the same for a continuation to mean anything."""
    return json.dumps(
        {
            "concept": asdict(trainer.concept),
            "method": trainer.method.name,
            "settings": asdict(trainer.settings),
            "base": fingerprint(trainer.layers),
        },
        sort_keys=True,
    )


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return {
        f"adam.{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()
    }


def save_checkpoint(path: Path, trainer: Trainer) -> None:
    """Write the state atomically.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    tensors: dict[str, Tensor] = {f"delta.{i}": parameter for i, parameter in enumerate(trainer.deltas.parameters())}
    tensors |= _optimizer_tensors(trainer)
    for name, pool in trainer.pools.items():
        tensors |= {f"pool.{name}.{key}": value for key, value in pool.tensors().items()}
    history = {"losses": trainer.history.losses, "residual_guidance": trainer.history.residual_guidance}
    metadata = {
        "format": FORMAT,
        "identity": _identity(trainer),
        "step": str(trainer.step),
        "history": json.dumps(history),
    }
    write_tensors(path, tensors, metadata)


def load_checkpoint(path: Path, trainer: Trainer) -> None:
    """Continue where ``path`` stopped.

    Raises:
        InvalidFile: damaged, or of a run with another concept, method, settings or model.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise InvalidFile(f"{path} is not a resumable training state; delete it or choose another output name.")
    if metadata.get("identity") != _identity(trainer):
        raise InvalidFile(
            f"{path} belongs to a training with another concept, method, settings or model; "
            "repeat that command to continue it, or delete the file to start anew."
        )
    try:
        _restore(tensors, metadata, trainer)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InvalidFile(f"{path} is damaged ({error}); delete it to start anew.") from error


def _restore(tensors: dict[str, Tensor], metadata: dict[str, str], trainer: Trainer) -> None:
    parameters = trainer.deltas.parameters()
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(tensors[f"delta.{i}"])
    state = trainer.optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
    trainer.optimizer.load_state_dict(state)
    for name, roles in trainer.pool_roles().items():
        prefix = f"pool.{name}."
        held = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        trainer.pools[name] = TrajectoryPool.from_tensors(held, tuple(roles["prompt"]), trainer.model.device)
    history = json.loads(metadata["history"])
    trainer.history.losses = history["losses"]
    trainer.history.residual_guidance = [(step, value) for step, value in history["residual_guidance"]]
    trainer.step = int(metadata["step"])
