"""An erasure from the state of a training that was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure_core.checkpoint import MAX_SIZE, identity
from erasure_core.concept import Concept
from erasure_core.delta import DeltaSet, new_deltas
from erasure_core.erasing import describe
from erasure_core.erasure_file import Erasure, write_erasure
from erasure_core.errors import InvalidFile, InvalidSettings
from erasure_core.layers import select
from erasure_core.methods import Method, SolverSettings, TrainingSettings
from erasure_core.model import LoadedModel
from erasure_core.safe_files import read_tensors

STEPPED_DOWN = ("batch", "accumulate", "picture_scale")
"""Settings that a training lowers by itself where memory is short, see ``erasure_core/effort.py``."""


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
    try:
        found, steps = json.loads(metadata["identity"]), int(metadata["step"])
        learned = learned_concept(found["concept"])
        settings = replace(settings, **{name: found["settings"][name] for name in STEPPED_DOWN})
        mine = json.loads(identity(model, concept, method.name, settings, layers))
        same = all(found[name] == mine[name] for name in ("method", "settings", "base"))
    except (LookupError, ValueError, TypeError) as error:
        raise InvalidFile(f"{checkpoint} is damaged ({error}); discard it and start anew.") from error
    if not same or not is_completed(concept, learned):
        raise InvalidFile(f"{checkpoint} belongs to a training with another concept, method, settings or model.")
    if not steps:
        raise InvalidSettings("The training was stopped before its first step; there is nothing to save.")
    deltas = new_deltas(layers, settings.rank, settings.seed)
    _fill(deltas, tensors, checkpoint)
    manifest = describe(model, deltas, learned, method.name, method.status, asdict(settings), steps)
    write_erasure(target, Erasure(deltas, manifest), model)
    return steps


def learned_concept(found: Mapping[str, Any]) -> Concept:
    """The concept that a training works on, from its checkpoint: as the user wrote it, completed by the method."""
    return Concept(**{field.name: _as_tuples(found[field.name]) for field in fields(Concept)})


def _as_tuples(value: Any) -> Any:
    """JSON's lists, and lists in them, as the tuples that they were."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def is_completed(asked: Concept, learned: Concept) -> bool:
    """Whether a concept may be the one that was asked for, completed: a method adds words, prompts to keep and an
    alternative where there was none. What is kept can become less too, where an added word is said in it."""
    has_words = set(asked.words) <= set(learned.words)
    same_instead = not asked.has_alternative or (asked.alternative, asked.instead) == (
        learned.alternative,
        learned.instead,
    )
    return has_words and same_instead


def _fill(deltas: DeltaSet, tensors: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Raises:
    InvalidFile: a tensor is missing or of another shape.
    """
    try:
        with torch.no_grad():
            for place, parameter in enumerate(deltas.parameters()):
                parameter.copy_(tensors[f"delta.{place}"])
    except (KeyError, RuntimeError) as error:
        raise InvalidFile(f"{checkpoint} is damaged ({error}); discard it and start anew.") from error
