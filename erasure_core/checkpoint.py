"""The resumable state of a training run, as one safetensors file beside the result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .concept import Concept
from .concept_pictures import ConceptPictures
from .errors import InvalidFile, OtherTraining
from .fingerprint import fingerprint
from .model import LoadedModel, reading_of
from .safe_files import read_tensors, write_tensors
from .trajectory import TrajectoryPool

if TYPE_CHECKING:
    from .trainer import Trainer

FORMAT = "erasure-checkpoint-1"
MAX_SIZE = 128 * 2**30
"""Bytes. Weights and moments of all of SDXL take 31 GiB."""


def checkpoint_path(output: Path) -> Path:
    """Where the state of the training that makes ``output`` is kept until it is complete."""
    return output.with_name(output.name + ".partial")


def identity(
    model: LoadedModel,
    concept: Concept,
    method: str,
    settings: Any,
    layers: Iterable[str],
    pictures: ConceptPictures | None = None,
) -> str:
    """What must be the same for a continuation to mean anything: all but settings that leave the result alone."""
    chosen = {f.name: getattr(settings, f.name) for f in fields(settings) if not f.metadata["neutral"]}
    same = {"concept": asdict(concept), "method": method, "settings": chosen, "base": fingerprint(model, layers)}
    same |= {"schedule": model.schedule.digest(), "reading": reading_of(model)}
    if pictures is not None:
        same["pictures"] = pictures.fingerprint()
    return json.dumps(same, sort_keys=True)


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return {
        f"adam.{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()
    }


def _table(losses: Sequence[Mapping[str, float]]) -> dict[str, list[Any]]:
    """Loss terms of many steps with each name written once: a header of a file is read up to 16 MiB."""
    names = list(dict.fromkeys(name for terms in losses for name in terms))
    return {"names": names, "steps": [[terms.get(name) for name in names] for terms in losses]}


def _from_table(table: Mapping[str, list[Any]]) -> list[dict[str, float]]:
    steps = (zip(table["names"], values, strict=True) for values in table["steps"])
    return [{name: value for name, value in terms if value is not None} for terms in steps]


def save_checkpoint(path: Path, trainer: Trainer) -> None:
    """Write the state atomically.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    tensors: dict[str, Tensor] = {f"delta.{i}": parameter for i, parameter in enumerate(trainer.deltas.parameters())}
    tensors |= _optimizer_tensors(trainer)
    for name, pool in trainer.pools.items():
        tensors |= {f"pool.{name}.{key}": value for key, value in pool.tensors().items()}
    tensors |= {f"state.{key}": value for key, value in trainer.state.tensors.items()}
    history = asdict(trainer.history) | {"losses": _table(trainer.history.losses)}
    metadata = {
        "format": FORMAT,
        "identity": trainer.identity,
        "step": str(trainer.step),
        "prepared": str(trainer.prepared),
        "history": json.dumps(history),
        "loss_scale": str(trainer.loss_scale),
    }
    write_tensors(path, tensors, metadata)


def load_checkpoint(path: Path, trainer: Trainer) -> None:
    """Continue where ``path`` stopped.

    Raises:
        OtherTraining: it is of a run with another concept, method, settings or model.
        InvalidFile: damaged.
    """
    tensors, metadata = read_tensors(path, MAX_SIZE)
    if metadata.get("format") != FORMAT:
        raise InvalidFile(f"{path} is not a resumable training state; delete it or choose another output name.")
    if metadata.get("identity") != trainer.identity:
        raise OtherTraining(
            f"{path} belongs to a training with another concept, method, settings or model; "
            "repeat that command to continue it, or delete the file to start anew."
        )
    # A tensor inside a file may start anywhere, and where it starts decides how a CPU rounds its sums.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        _restore(tensors, metadata, trainer)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
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
    moved = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    for index, entry in state["state"].items():
        if any(entry[name].shape != moved[index].shape for name in ("exp_avg", "exp_avg_sq")) or "step" not in entry:
            raise ValueError(f"the optimiser's state of parameter {index} is not whole")
    trainer.optimizer.load_state_dict(state)
    for name, roles in trainer.pool_roles().items() if any(key.startswith("pool.") for key in tensors) else ():
        prefix = f"pool.{name}."
        held = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        trainer.pools[name] = TrajectoryPool.from_tensors(
            held, tuple(roles["prompt"]), trainer.model.device, trainer.unanswered
        )
    held = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    trainer.state.tensors = {key: value.to(trainer.model.device) for key, value in held.items()}
    history = json.loads(metadata["history"])
    trainer.history.losses = _from_table(history["losses"])
    trainer.history.residual_guidance = [(step, value) for step, value in history["residual_guidance"]]
    trainer.history.figures = [(step, figures) for step, figures in history["figures"]]
    trainer.loss_scale = float(metadata["loss_scale"])
    trainer.step, trainer.prepared = int(metadata["step"]), int(metadata["prepared"])
