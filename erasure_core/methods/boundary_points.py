"""Boundary points as part of a training: found by self-checks every few steps, kept, and handed out to losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InvalidSettings
from ..model import Conditioning, PromptModel
from ..run_state import RunState
from ..self_check import BoundaryPoints, SelfCheck, self_check
from .registry import TrainingSettings, option

if TYPE_CHECKING:
    from ..trainer import Step
    from ..trajectory import Draw


POINT = "point."
"""Starts the names of the points' tensors, apart from what else a method carries."""


@dataclass(frozen=True)
class CheckSettings(TrainingSettings):
    """Settings of methods that check themselves while they train."""

    warm_up: int = option(50, "steps before the first self-check", low=0, high=100_000)
    check_every: int = option(25, "steps between self-checks; 0 makes none", low=0, high=100_000)
    check_starts: int = option(8, "searches in one self-check", low=1, high=256)
    check_steps: int = option(15, "optimiser steps of a self-check", low=1, high=1000)
    check_rate: float = option(0.2, "learning rate of a self-check, in spreads of the embeddings", low=1e-6, high=10.0)
    check_margin: float = option(0.5, "least similarity of a boundary point to the concept", low=-1.0, high=1.0)
    check_diversity: float = option(0.3, "weight of differing from earlier boundary points", low=0.0, high=100.0)
    check_memory: int = option(32, "boundary points kept", low=1, high=4096)


class Boundary(RunState):
    """The boundary points found so far, a ring of ``check_memory``, and how the last check found the boundary."""

    @property
    def settings(self) -> CheckSettings:
        settings = self.trainer.settings
        assert isinstance(settings, CheckSettings)
        return settings

    @property
    def model(self) -> PromptModel:
        model: Any = self.trainer.model
        if not hasattr(model, "encode_embeddings"):
            raise InvalidSettings(
                "This host cannot encode token embeddings, which a self-check needs; choose another method."
            )
        prompts: PromptModel = model
        return prompts

    @property
    def points(self) -> dict[str, Tensor]:
        return {key.removeprefix(POINT): value for key, value in self.tensors.items() if key.startswith(POINT)}

    def before_step(self) -> dict[str, Tensor]:
        s, since = self.settings, self.trainer.step - self.settings.warm_up
        if not s.check_every or since < 0 or since % s.check_every:
            return self.tensors
        words = self.trainer.concept.words
        first = since // s.check_every * s.check_starts
        turn = [(first + i) % len(words) for i in range(s.check_starts)]
        chance, past = self.trainer.chance(3_000_000_019 + since), self.points.get("features")
        said = [words[i] for i in turn]
        found = self_check(self.model, self.trainer.deltas, said, self._search(), chance, past)
        return self.tensors | {POINT + key: value for key, value in self._with(found, turn).items()}

    def _search(self) -> SelfCheck:
        s = self.settings
        return SelfCheck(
            s.check_starts, s.check_steps, s.check_rate, margin=s.check_margin, diversity=s.check_diversity
        )

    def _with(self, found: BoundaryPoints, words: list[int]) -> dict[str, Tensor]:
        """The memory with new points at its end; older ones drop out."""
        new = {f"embeddings.{i}": given for i, given in enumerate(found.embeddings)}
        new |= {"ends": torch.tensor(found.ends), "word": torch.tensor(words)}
        new |= {"features": found.features, "belonging": found.belonging, "remaining": found.remaining}
        memory, old = self.settings.check_memory, self.points or {key: value[:0] for key, value in new.items()}
        return {key: torch.cat([old[key].to(value.device), value])[-memory:] for key, value in new.items()}

    def figures(self) -> dict[str, float]:
        """Radius of the boundary as the original reads it, and the share of points still read as the concept."""
        points = self.points
        if not points:
            return {}
        return {
            "boundary radius": float((1 - points["belonging"]).mean()),
            "still the concept": float((points["remaining"] > 0.5).float().mean()),
        }

    def drawn(self, step: Step) -> tuple[Draw, Conditioning] | None:
        """States on the way to the concept alone, half as many as a batch has, each with a boundary point of its word;
        ``None`` before the first self-check. A point says the concept and nothing beside it."""
        draw = step.alone(max(1, self.settings.batch // 2)) if self.points else None
        points = self.conditioning(draw, step.generator) if draw is not None else None
        return None if draw is None or points is None else (draw, points)

    def conditioning(self, draw: Draw, generator: torch.Generator) -> Conditioning | None:
        """For each state of a draw a boundary point of the word that its prompt says; ``None`` before the first."""
        points, sayings = self.points, self.trainer.sayings
        if not points:
            return None
        chosen = [_one_of(points["word"], sayings[prompt].word, generator) for prompt in draw.prompts]
        count = sum(key.startswith("embeddings.") for key in points)
        embeddings = [points[f"embeddings.{i}"][chosen] for i in range(count)]
        return self.model.encode_embeddings(embeddings, [int(points["ends"][i]) for i in chosen])


def _one_of(words: Tensor, word: int, generator: torch.Generator) -> int:
    """The place of a random point of a word, or of any word where that one has not had its turn."""
    own = (words == word).nonzero()[:, 0]
    if not len(own):
        own = torch.arange(len(words))
    return int(own[torch.randint(len(own), (1,), generator=generator)])
