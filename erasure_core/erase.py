"""The two things everyone does with the core: erase a concept, and apply finished erasures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from .concept import Concept
from .delta import DeltaSet
from .erasure_file import Erasure
from .fingerprint import fingerprint
from .manifest import Manifest
from .methods import Method, SolverSettings, TrainingSettings, find_method
from .model import LoadedModel
from .progress import Progress, Silent
from .trainer import SAVE_EVERY, History, Trainer
from .version import __version__


def erase(
    model: LoadedModel,
    concept: Concept,
    method: str = "esd",
    settings: SolverSettings | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    save_every: float = SAVE_EVERY,
) -> tuple[Erasure, History]:
    """Erase a concept from a loaded model. The model itself is not changed.

    Args:
        model: the model as its host has loaded it.
        concept: what to erase, what instead, what to keep.
        method: name of a registered method.
        settings: that method's settings; its defaults if not given.
        progress: reports and cancellation.
        checkpoint: file for the resumable state. If it exists, training goes on from it.
        save_every: seconds between two saves of that state.

    Returns:
        The erasure, and the training's history (empty for a closed form).

    Raises:
        ErasureError: with one sentence that says what is wrong and what to do.
    """
    chosen, progress = find_method(method), progress or Silent()
    settings = settings or chosen.settings()
    if chosen.solve is not None:
        with model.trainable():
            deltas, history = chosen.solve(model, concept, settings, progress), History()
    else:
        assert isinstance(settings, TrainingSettings)
        deltas, history = Trainer(model, concept, chosen, settings, progress, checkpoint, save_every).run()
    return Erasure(deltas, _describe(model, concept, chosen, settings, deltas, history)), history


def _describe(
    model: LoadedModel, concept: Concept, method: Method, settings: SolverSettings, deltas: DeltaSet, history: History
) -> Manifest:
    layers = model.layers()
    return Manifest(
        words=concept.words,
        alternative=concept.alternative,
        keep=concept.keep,
        method=method.name,
        method_status=method.status,
        settings=asdict(settings),
        steps_done=len(history.losses),
        family=model.family,
        base_fingerprint=fingerprint({name: layers[name] for name in deltas}),
        prediction=model.schedule.prediction,
        product_version=__version__,
    )


@contextmanager
def applied(model: LoadedModel, erasures: Sequence[tuple[DeltaSet, float]]) -> Iterator[None]:
    """Inside, the model paints with the erasures at their strengths, added up; on leaving it is as it was."""
    layers = model.layers()
    with ExitStack() as stack:
        for deltas, strength in erasures:
            stack.enter_context(DeltaSet(deltas.deltas, strength).attached(layers))
        yield
