"""Prompts with known answers, balanced over every way to say every concept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from .captions import DOUBLE, SINGLE, filler_words, noun_phrase
from .lexicon import BACKGROUNDS, COLOURS, CONCEPTS, OBJECTS, STYLES
from .scene import phrases

TWO_OBJECTS = 0.25
"""Share of prompts with two objects."""
SAYS_COLOUR = 0.8
SAYS_STYLE = 0.7

Item = TypeVar("Item")


class Said(NamedTuple):
    """A concept and the words used for it."""

    name: str
    phrase: str


@dataclass(frozen=True)
class Asked:
    """One thing that a prompt asks for; colour and style may be left open."""

    object: Said
    colour: Said | None
    style: Said | None

    def text(self) -> str:
        colour, style = self.colour, self.style
        return noun_phrase(self.object.phrase, colour and colour.phrase, style and style.phrase)

    def names(self, kind: str) -> str | None:
        """The concept of one kind that is asked for, if any."""
        said: Said | None = getattr(self, kind)
        return said and said.name


@dataclass(frozen=True)
class Prompt:
    """A text, the things it asks for from left to right, and the background if it names one."""

    text: str
    things: tuple[Asked, ...]
    background: str | None


def _deck(items: list[Item], rng: random.Random) -> Iterator[Item]:
    """Deal shuffled items for ever; none comes a second time before all have come."""
    while True:
        yield from rng.sample(items, len(items))


def _ways(names: list[str], words_only: bool = False) -> list[Said]:
    return [Said(n, phrase) for n in names for phrase in (CONCEPTS[n].words if words_only else phrases(n))]


class _Dealer:
    """Deals things and backgrounds evenly."""

    def __init__(self, rng: random.Random, words_only: bool) -> None:
        self.rng = rng
        self.objects = _deck(_ways(list(OBJECTS), words_only), rng)
        self.colours = _deck(_ways(list(COLOURS), words_only), rng)
        self.styles = _deck(_ways(list(STYLES), words_only), rng)
        self.backgrounds = _deck([Said(n, phrase) for n, ways in BACKGROUNDS.items() for phrase in ways], rng)

    def thing(self, other: Asked | None = None) -> Asked:
        said = next(self.objects)
        while other is not None and said.name == other.object.name:
            said = next(self.objects)
        colour = next(self.colours) if self.rng.random() < SAYS_COLOUR else None
        return Asked(said, colour, next(self.styles) if self.rng.random() < SAYS_STYLE else None)

    def prompt(self, things: tuple[Asked, ...]) -> Prompt:
        template = self.rng.choice(SINGLE if len(things) == 1 else DOUBLE)
        background = next(self.backgrounds) if "{bg}" in template else None
        while "{f}" in template:
            template = template.replace("{f}", self.rng.choice(filler_words()), 1)
        said = {"np": things[0].text(), "np2": things[-1].text(), "bg": background.phrase if background else ""}
        return Prompt(template.format(**said), things, background and background.name)


def quality_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """``count`` prompts: singles over all words and descriptions first, then two-object prompts over words."""
    rng = random.Random(seed)
    singles, doubles = _Dealer(rng, words_only=False), _Dealer(rng, words_only=True)
    two = int(count * TWO_OBJECTS)
    prompts = [singles.prompt((singles.thing(),)) for _ in range(count - two)]
    for _ in range(two):
        left = doubles.thing()
        prompts.append(doubles.prompt((left, doubles.thing(left))))
    return prompts
