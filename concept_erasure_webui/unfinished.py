"""An erasure from the state of a training that was stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from erasure_core.checkpoint import MAX_SIZE, identity
from erasure_core.concept import Concept
from erasure_core.delta import new_deltas
from erasure_core.erasing import describe
from erasure_core.erasure_file import Erasure, write_erasure
from erasure_core.errors import InvalidFile, InvalidSettings
from erasure_core.layers import select
from erasure_core.methods import Method, SolverSettings, TrainingSettings
from erasure_core.model import LoadedModel
from erasure_core.safe_files import read_tensors


def save_unfinished(
    model: LoadedModel, concept: Concept, method: Method, settings: SolverSettings, checkpoint: Path, target: Path
) -> int:
    """Write what a stopped training has learned so far; its manifest says after how many steps.

    Returns:
        The number of steps.

    Raises:
        InvalidFile: the state is damaged or belongs to another training.
        InvalidSettings: the method does not train, or has not made a step.
    """
    if not isinstance(settings, TrainingSettings):
        raise InvalidSettings(f"{method.title} does not train; there is nothing to save.")
    tensors, metadata = read_tensors(checkpoint, MAX_SIZE)
    layers = select(model.layers(), settings.layers)
    mine = json.loads(identity(model, concept, method.name, settings, layers))
    found = json.loads(metadata.get("identity", "{}"))
    # The trainer may have added prompts to keep; all that was asked for must be the same.
    learned = found.get("concept", {})
    same = {name: found.get(name) for name in ("method", "settings", "base")}
    if same | {"words": learned.get("words")} != {name: mine[name] for name in same} | {"words": list(concept.words)}:
        raise InvalidFile(f"{checkpoint} belongs to a training with another concept, method, settings or model.")
    concept = replace(concept, keep=tuple(learned["keep"]))
    steps = int(metadata["step"])
    if not steps:
        raise InvalidSettings("The training was stopped before its first step; there is nothing to save.")
    deltas = new_deltas(layers, settings.rank, settings.seed)
    with torch.no_grad():
        for place, parameter in enumerate(deltas.parameters()):
            parameter.copy_(tensors[f"delta.{place}"])
    manifest = describe(model, deltas, concept, method.name, method.status, asdict(settings), steps)
    write_erasure(target, Erasure(deltas, manifest), model)
    return steps
