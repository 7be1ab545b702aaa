"""How a published algorithm becomes available everywhere: one dataclass of settings, one function, one decorator.

The dataclass is the schema: command-line flags, host widgets and the manifest are generated from its fields.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InvalidSettings
from ..layers import LAYER_GROUPS
from ..run_state import RunState
from ..trajectory import BOTH, DRIVERS

if TYPE_CHECKING:
    from ..concept import Concept
    from ..delta import DeltaSet
    from ..model import LoadedModel
    from ..progress import Progress
    from ..trainer import Step
    from ..trajectory import Draw

Loss = Callable[[Any, "Step"], dict[str, Tensor]]
Goal = Callable[[Any, "Draw"], Tensor]
Prepare = Callable[["LoadedModel", "Concept", Any, "Progress"], "Concept"]
Solve = Callable[["LoadedModel", "Concept", Any, "Progress"], "DeltaSet"]
Check = Callable[["LoadedModel", Any], object]


def option(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    combine: bool = False,
    neutral: bool = False,
    basic: bool = False,
) -> Any:
    """One setting: its default, what it does, and its range (both ends allowed).

    ``combine`` lets several choices be joined by "+"; ``neutral`` marks what changes memory or time but not the result;
    ``basic`` marks what most people may want to choose, so that front ends can fold the rest away.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "combine": combine}
    return field(default=default, metadata=metadata | {"neutral": neutral, "basic": basic})


KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""What settings can be, by the type that their field is declared with."""


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; a whole number is a number too, and so are numpy's."""
    if kind in (bool, str):
        return isinstance(value, kind)
    wanted = numbers.Integral if kind is int else numbers.Real
    return isinstance(value, wanted) and not isinstance(value, bool)


def check_settings(settings: Any) -> None:
    """Check every field against its own range.

    Raises:
        InvalidSettings: a value of another type or outside its range; the message names the field and what it may be.
    """
    for setting in fields(settings):
        value, meta = getattr(settings, setting.name), setting.metadata
        if value is None and (setting.default is None or "None" in str(setting.type)):
            continue
        kind = next((kind for kind in KINDS if kind.__name__ in str(setting.type)), None)
        if kind is not None and not _is_of(value, kind):
            raise InvalidSettings(f"{setting.name} is {value!r}; it must be {KINDS[kind]}.")
        if meta["choices"]:
            parts = str(value).split("+") if meta["combine"] else [value]
            if any(part not in meta["choices"] for part in parts):
                raise InvalidSettings(f"{setting.name} is {value!r}; choose from {', '.join(meta['choices'])}.")
        elif (meta["low"] is not None and not value >= meta["low"]) or (
            meta["high"] is not None and not value <= meta["high"]
        ):
            raise InvalidSettings(f"{setting.name} is {value}; it must lie between {meta['low']} and {meta['high']}.")


MOST_ACCUMULATED = 64


@dataclass(frozen=True)
class SolverSettings:
    """What every method has."""

    layers: str = option(
        "cross-attention-kv", "layers that change", choices=tuple(LAYER_GROUPS), combine=True, basic=True
    )
    contexts: int = option(48, "training prompts that say the concept inside your kept prompts", low=0, high=1000)
    neighbours: int = option(2, "words near each word of the kept prompts that are kept too", low=0, high=100)
    replace: bool = option(
        True, "without an alternative, the likest word of your kept prompts takes the place", basic=True
    )
    seed: int = option(0, "random seed", low=0, high=2**53, basic=True)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TrainingSettings(SolverSettings):
    """What every method that trains has. Learning rates are for SD1.5's widths and scale with each layer's."""

    rank: int = option(
        16, "rank of the change (LoRA); 0 trains full-size (dense) changes", low=0, high=1024, basic=True
    )
    steps: int = option(400, "optimiser steps", low=1, high=100_000, basic=True)
    learning_rate: float = option(1e-3, "Adam learning rate for a layer of SD1.5's width", low=1e-8, high=1.0)
    cool_down: float = option(
        0.5, "share of the steps, at the end, over which the learning rate falls to nothing", low=0.0, high=1.0
    )
    batch: int = option(8, "noisy states of the concept in one step, and as many of kept prompts", low=1, high=256)
    accumulate: int = option(1, "batches summed up before an optimiser step", low=1, high=MOST_ACCUMULATED)
    keep_weight: float = option(2.0, "weight of the retention of kept prompts", low=0.0, high=1000.0, basic=True)
    guidance: float = option(3.0, "guidance (CFG) scale at which training pictures are drawn", low=1.0, high=30.0)
    trajectories: int = option(
        48, "training pictures drawn in advance, each used at all its steps (trajectories)", low=1, high=4096
    )
    trajectory_steps: int = option(20, "sampling steps of each of them", low=1, high=1000)
    refresh: int = option(200, "optimiser steps after which they are drawn anew", low=1, high=100_000)
    driver: str = option(
        BOTH,
        "where the concept's trajectories lead: to the concept (original), to what is painted instead (goal), half of "
        "them each (both), or wherever the model in training leads them (training)",
        choices=DRIVERS,
    )
    max_batch: int = option(
        16,
        "most pictures computed at once where nothing is trained; less needs less memory",
        low=1,
        high=1024,
        neutral=True,
    )
    checkpointing: bool = option(False, "recompute activations to save memory", neutral=True)
    picture_scale: float = option(
        1.0, "sides of the training pictures as a share of the model's own; less needs less memory", low=0.1, high=1.0
    )
    spare_layout: float = option(
        0.0, "share of the timesteps, the noisiest ones, that keep the concept's layout", low=0.0, high=0.95
    )
    start: str = option("nothing", "what the training starts from", choices=("nothing", "closed_form"))
    stop_below: float | None = option(
        None, "stop early when so little of the guidance towards the concept is left", low=-100.0, high=1.0
    )


@dataclass(frozen=True)
class Method:
    """A registered algorithm.

    Args:
        name: identifier on the command line and in files.
        title: name for people.
        reference: the paper.
        status: how our form relates to the paper, shown in UI, docs and manifest.
        settings: the frozen dataclass of its settings.
        loss: named loss terms of one step; ``None`` for a solver.
        solve: computes the change at once; ``None`` for a loss.
        state: what the loss carries through a run.
        prepare: completes the concept before the work, for example by words that the model reads as it.
        goal: what the loss wants predicted for the concept's prompts, from (settings, draw); trajectories lead there.
        check: refuses settings that the method cannot follow on a model, before any work.
        erasing: the loss term that says how far the concept is from what is wanted of it (see ``moved_away``).
    """

    name: str
    title: str
    reference: str
    status: str
    settings: type[SolverSettings]
    loss: Loss | None = None
    solve: Solve | None = None
    state: type[RunState] = RunState
    prepare: Prepare | None = None
    goal: Goal | None = None
    check: Check | None = None
    erasing: str = "erase"


METHODS: dict[str, Method] = {}


def method(
    name: str,
    title: str,
    reference: str,
    status: str,
    settings: type[SolverSettings],
    *,
    state: type[RunState] = RunState,
    prepare: Prepare | None = None,
    goal: Goal | None = None,
    check: Check | None = None,
    erasing: str = "erase",
) -> Callable[[Loss], Loss]:
    """Register a trained method. The decorated function gets (settings, step) and returns named loss terms."""

    def register(loss: Loss) -> Loss:
        METHODS[name] = Method(
            name,
            title,
            reference,
            status,
            settings,
            loss=loss,
            state=state,
            prepare=prepare,
            goal=goal,
            check=check,
            erasing=erasing,
        )
        return loss

    return register


def solver(
    name: str,
    title: str,
    reference: str,
    status: str,
    settings: type[SolverSettings],
    *,
    check: Check | None = None,
) -> Callable[[Solve], Solve]:
    """Register a method that computes its change at once, from (model, concept, settings, progress)."""

    def register(solve: Solve) -> Solve:
        METHODS[name] = Method(name, title, reference, status, settings, solve=solve, check=check)
        return solve

    return register


def find_method(name: str) -> Method:
    """A registered method.

    Raises:
        InvalidSettings: there is no such method.
    """
    if name not in METHODS:
        raise InvalidSettings(f"There is no method {name!r}; choose from {', '.join(METHODS)}.")
    return METHODS[name]
