"""How near the words of a concept are in what the UNet reads: near, but not identical, or the world is too easy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erasure_core import PictureModel

from .captions import noun_phrase
from .evaluation import KINDS
from .lexicon import Concept

CARRIER = "ball"
"""The object that colours and styles are said with."""


@dataclass(frozen=True)
class Nearness:
    """Mean cosine of centred text states, over pairs of one concept and over pairs of different concepts.

    Args:
        kind: ``object``, ``colour`` or ``style``.
        words_same, words_other: two words, in the padding behind the prompt.
        descriptions_same, descriptions_other: a description and a word, in the padding.
    """

    kind: str
    words_same: float
    words_other: float
    descriptions_same: float
    descriptions_other: float

    def line(self) -> str:
        return (
            f"{self.kind:<8} two words of one concept {self.words_same:.2f}, of different ones {self.words_other:.2f}; "
            f"description and word of one concept {self.descriptions_same:.2f}, else {self.descriptions_other:.2f}"
        )


def _prompt(concept: Concept, phrase: str) -> str:
    if concept.kind == "object":
        return noun_phrase(phrase)
    return noun_phrase(CARRIER, **{concept.kind: phrase})


@torch.no_grad()
def _padding_states(model: PictureModel, prompts: list[str]) -> Tensor:
    """The last state of each prompt, [B, D]: with short prompts, padding."""
    return model.encode(prompts).context[:, -1]


def nearness(model: PictureModel, kind: str) -> Nearness:
    """Compare all words, and all descriptions with all words, of one kind of concept."""
    concepts = list(KINDS[kind].values())
    words = [(c, word) for c in concepts for word in c.words]
    descriptions = [(c, phrase) for c in concepts for phrase in c.descriptions]
    states = _padding_states(model, [_prompt(c, phrase) for c, phrase in words])
    described = _padding_states(model, [_prompt(c, phrase) for c, phrase in descriptions])
    centre = states.mean(0)
    unit, unit_described = (torch.nn.functional.normalize(s - centre, dim=-1) for s in (states, described))
    same = torch.tensor([[a is b for b, _ in words] for a, _ in words])
    others = ~torch.eye(len(words), dtype=torch.bool)
    same_described = torch.tensor([[a is b for b, _ in words] for a, _ in descriptions])
    between, across = unit @ unit.T, unit_described @ unit.T
    return Nearness(
        kind,
        float(between[same & others].mean()),
        float(between[~same].mean()),
        float(across[same_described].mean()),
        float(across[~same_described].mean()),
    )
