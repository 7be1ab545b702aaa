"""Boundary points as part of a training: found by self-checks every few steps, kept, and handed out to losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..batches import Batches
from ..errors import InvalidSettings
from ..model import Conditioning, LoadedModel, PromptModel, as_prompt_model
from ..run_state import RunState
from ..self_check import BoundaryPoints, SelfCheck, self_check
from ..trajectory import ALTERNATIVE, EMPTY, PROMPT, WITHOUT, Draw, predict_roles
from .registry import option
from .vocabulary import VocabularySettings

if TYPE_CHECKING:
    from ..trainer import Step, Trainer


Written = tuple[list[Tensor], list[int]]
"""Prompts as token embeddings [B, L, D] for each text encoder, and the place of each one's end token."""
POINT = "point."
"""Starts the names of the points' tensors, apart from what else a method carries."""


@dataclass(frozen=True)
class CheckSettings(VocabularySettings):
    """Settings of methods that check themselves while they train."""

    warm_up: int = option(50, "steps before the first self-check", low=0, high=100_000)
    check_every: int = option(25, "steps between self-checks; 0 makes none", low=0, high=100_000)
    check_starts: int = option(8, "searches in one self-check", low=1, high=256)
    check_steps: int = option(15, "optimiser steps of a self-check", low=1, high=1000)
    check_rate: float = option(0.2, "learning rate of a self-check, in spreads of the embeddings", low=1e-6, high=10.0)
    check_margin: float = option(0.7, "least similarity of a boundary point to the concept", low=-1.0, high=1.0)
    check_diversity: float = option(0.3, "weight of differing from earlier boundary points", low=0.0, high=100.0)
    check_memory: int = option(32, "boundary points kept", low=1, high=4096)


def _asked(model: LoadedModel) -> PromptModel:
    """The model as a self-check asks it.

    Raises:
        InvalidSettings: it cannot be asked.
    """
    asked = as_prompt_model(model)
    if asked is None:
        raise InvalidSettings(
            "This host cannot encode token embeddings, which a self-check needs; choose another method."
        )
    return asked


def check_self_checks(model: LoadedModel, settings: CheckSettings) -> None:
    """Refuse before the work, and not in the middle of a training, where no self-check can be made.

    Raises:
        InvalidSettings: the training makes self-checks, and the model cannot be asked for what they need.
    """
    if settings.check_every and settings.warm_up < settings.steps:
        _asked(model)


class Boundary(RunState):
    """The boundary points found so far, a ring of ``check_memory``, and how the last check found the boundary."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._vectors: dict[str, list[Tensor]] = {}

    @property
    def settings(self) -> CheckSettings:
        settings = self.trainer.settings
        assert isinstance(settings, CheckSettings)
        return settings

    @property
    def model(self) -> PromptModel:
        return _asked(self.trainer.model)

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
        new |= {"ends": torch.tensor(found.ends), "said": torch.tensor(found.said), "word": torch.tensor(words)}
        new |= {"features": found.features, "belonging": found.belonging, "remaining": found.remaining}
        memory, old = self.settings.check_memory, self.points or {key: value[:0] for key, value in new.items()}
        return {key: torch.cat([old[key].to(value.device), value])[-memory:] for key, value in new.items()}

    def figures(self) -> dict[str, float]:
        """Radius of the boundary as the original reads it, and the share of points still read as the concept."""
        points = self.points
        if not points:
            return {}
        return {
            "radius of the boundary": float((1 - points["belonging"]).mean()),
            "share of its points (embeddings, no prompts) that still read as the concept": float(
                (points["remaining"] > 0.5).float().mean()
            ),
        }

    def drawn(self, step: Step) -> Bounding | None:
        """States on the way to the concept, half as many as a batch has, each with a boundary point of its word;
        ``None`` before the first self-check.

        What a point says around the concept is not to be erased with it. So the frozen model is asked here for the
        point itself, for the same without the concept, and for the same with the alternative in the concept's place.
        """
        if not self.points:
            return None
        trainer = self.trainer
        states = trainer.pools["concept"].draw(max(1, self.settings.batch // 2), step.generator, trainer.noisiest)
        wanted = [trainer.sayings[prompt].word for prompt in states.prompts]
        chosen = [_one_of(self.points["word"], word, step.generator) for word in wanted]
        words = self.points["word"][chosen].tolist()  # a point's own: of another concept it goes another way
        own = dict(trainer.concept.instead)
        instead = [own.get(trainer.concept.words[word], trainer.concept.alternative or "") for word in words]
        written = {PROMPT: self._written(chosen), WITHOUT: self._rewritten(chosen, [""] * len(chosen))}
        if trainer.concept.has_alternative:
            written[ALTERNATIVE] = self._rewritten(chosen, instead)
        with torch.no_grad(), trainer.deltas.off():
            roles = self._encoded_together(written)
            batches = Batches(self.settings.max_batch)
            taught = predict_roles(trainer.model, roles, states.latents, states.t, batches, trainer.progress)
            teacher = {EMPTY: states.teacher[EMPTY], **taught}
        draw = replace(states, teacher=teacher)
        return Bounding(draw, self.encoded(chosen), roles.get(ALTERNATIVE, roles[WITHOUT]))

    def encoded(self, chosen: Sequence[int]) -> Conditioning:
        """Boundary points as the model encodes them now."""
        return self.model.encode_embeddings(*self._written(chosen))

    def _encoded_together(self, written: Mapping[str, Written]) -> dict[str, Conditioning]:
        """What each role has written, encoded in one call of each encoder: on a GPU, calls cost more than prompts."""
        given = [embeddings for embeddings, _ in written.values()]
        ends = [end for _, ends in written.values() for end in ends]
        encoded = self.model.encode_embeddings([torch.cat(parts) for parts in zip(*given, strict=True)], ends)
        starts = accumulate((len(ends) for _, ends in written.values()), initial=0)
        return {role: encoded[range(*pair)] for role, pair in zip(written, pairwise(starts), strict=True)}

    def _written(self, chosen: Sequence[int]) -> Written:
        return self._embeddings(chosen), [int(self.points["ends"][i]) for i in chosen]

    def _rewritten(self, chosen: Sequence[int], instead: Sequence[str]) -> Written:
        """Boundary points with other words in the place of the concept's."""
        said, length = [self.points["said"][i].tolist() for i in chosen], len(self.points["embeddings.0"][0])
        # What stands around a point leaves only so much room; the end token must stay.
        rooms = [length - int(self.points["ends"][i]) - 1 + own for i, (_, own) in zip(chosen, said, strict=True)]
        others = [[v[:room] for v in self._vectors_of(word)] for word, room in zip(instead, rooms, strict=True)]
        embeddings = []
        for encoder, rows in enumerate(self._embeddings(chosen)):
            places = zip(rows, said, others, strict=True)
            put = [_put(row, start, length, other[encoder].to(row)) for row, (start, length), other in places]
            embeddings.append(torch.stack(put))
        changes = zip(chosen, others, said, strict=True)
        ends = [int(self.points["ends"][i]) + len(other[0]) - length for i, other, (_, length) in changes]
        return embeddings, ends

    def _vectors_of(self, words: str) -> list[Tensor]:
        """The token embeddings [K, D] of words for each text encoder, asked for once: hosts copy whole tables."""
        if words not in self._vectors:
            (ids,) = self.model.tokenize([words])
            tables = self.model.token_tables()
            rows = [torch.tensor(ids, dtype=torch.long, device=table.device) for table in tables]
            self._vectors[words] = [table[row].clone() for table, row in zip(tables, rows, strict=True)]
        return self._vectors[words]

    def _embeddings(self, chosen: Sequence[int]) -> list[Tensor]:
        """Of each text encoder, [B, L, D]."""
        count = sum(key.startswith("embeddings.") for key in self.points)
        return [self.points[f"embeddings.{i}"][list(chosen)] for i in range(count)]


@dataclass(frozen=True)
class Bounding:
    """States with boundary points.

    Args:
        draw: the states, with what the frozen model predicts there for the points.
        points: the points, as the model in training encodes them.
        instead: what is to take their place, as the frozen model encodes it.
    """

    draw: Draw
    points: Conditioning
    instead: Conditioning


def _put(row: Tensor, start: int, length: int, other: Tensor) -> Tensor:
    """A row of embeddings [L, D] with ``other`` [K, D] in the place of ``length`` of them; padding makes up for it."""
    put = torch.cat([row[:start], other, row[start + length :], row[-1:].expand(length, -1)])
    return put[: len(row)]


def _one_of(words: Tensor, word: int, generator: torch.Generator) -> int:
    """The place of a random point of a word, or of any word where that one has not had its turn."""
    own = (words == word).nonzero()[:, 0]
    if not len(own):
        own = torch.arange(len(words))
    return int(own[torch.randint(len(own), (1,), generator=generator)])
