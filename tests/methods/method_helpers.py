"""A training stopped before its first step, with changed deltas, so that losses can be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from erasure_core import Concept, DeltaSet
from erasure_core.concept_pictures import ConceptPictures
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import find_method
from erasure_core.progress import Silent
from erasure_core.trainer import Step, Trainer

SMALL = {"rank": 4, "trajectories": 24, "trajectory_steps": 4, "batch": 3, "contexts": 6, "start": "nothing"}
CONCEPT = Concept(("ball", "orb"), None, ("a red box", "a cat", "the dog"))


@contextmanager
def stopped(
    model: DiffusersModel,
    concept: Concept,
    method: str,
    pictures: ConceptPictures | None = None,
    at: int = 0,
    **settings: Any,
) -> Iterator[tuple[Trainer, Step]]:
    """A trainer with random deltas, its state moved on to step ``at``, and the step that comes."""
    chosen = find_method(method)
    with model.trainable():
        trainer = Trainer(model, concept, chosen, chosen.settings(**SMALL | settings), Silent(), pictures=pictures)  # type: ignore[arg-type]
        with trainer.deltas.attached(trainer.layers), trainer.state.attached():
            trainer.begin()
            randomise(trainer.deltas)
            trainer.step = at
            trainer.refresh_pools()
            trainer.prepare_step()
            # A bare word and, where there are any, two that are said inside kept prompts.
            erased = trainer.pools["concept"].at(torch.tensor(_one_alone_two_inside(trainer)), torch.tensor([0, 2, 3]))
            kept = trainer.pools["kept"].draw(3, torch.Generator().manual_seed(1))
            yield trainer, Step(erased, kept, trainer, torch.Generator().manual_seed(2))


def _one_alone_two_inside(trainer: Trainer) -> list[int]:
    """Trajectories of a bare word and, where there are any, of two prompts that say a word inside kept ones."""
    pool = trainer.pools["concept"]
    without = [trainer.sayings[pool.texts[text]].without for text in pool.prompts]
    alone, inside = ([i for i, rest in enumerate(without) if bool(rest) is some] for some in (False, True))
    return [*alone[:1], *inside[:2], *alone[1:]][:3]


@torch.no_grad()
def randomise(deltas: DeltaSet, seed: int = 0) -> None:
    for parameter in deltas.parameters():
        parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))


def assert_same(trainer: Trainer, loss: Tensor, reference: Tensor) -> None:
    """Values and gradients of two ways to compute a loss."""
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-4)
    parameters = trainer.deltas.parameters()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    expected = torch.autograd.grad(reference, parameters, allow_unused=True)
    assert [g is None for g in found] == [g is None for g in expected]
    assert any(g is not None and g.abs().sum() > 0 for g in found)
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


class Slow:
    """Predictions for one latent and one prompt at a time, by the model as it is or as it was."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def now(self, z: Tensor, t: Tensor, prompt: str) -> Tensor:
        model = self.trainer.model
        return model.predict(z[None], t[None], model.encode([prompt]))[0]

    def before(self, z: Tensor, t: Tensor, prompt: str) -> Tensor:
        with torch.no_grad(), self.trainer.deltas.off():
            return self.now(z, t, prompt)
