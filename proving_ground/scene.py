"""What is in a picture, before it is drawn and before it is put into words."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .lexicon import BACKGROUND_NAMES, COLOUR_NAMES, CONCEPTS, OBJECT_NAMES, STYLE_NAMES

SIZE = 64
"""Side of a picture in pixels."""

OBJECT_NUANCES = (
    (1.0, 1.0, 0.0),
    (1.12, 1.0, 0.0),
    (0.88, 1.0, 0.0),
    (1.0, 1.18, 0.0),
    (1.0, 0.85, 0.0),
    (1.0, 1.0, 0.22),
)
"""(size factor, width/height, tilt in radians) of an object's 1st, 2nd, … way of being said.

The ways of saying one thing differ a little in what they show, as in life a cottage is not quite a cabin. Without
that a contrastive text encoder would map all words of a concept to one point, and erasing one would erase all.
"""

COLOUR_NUANCES = (1.0, 1.14, 0.84, 0.92, 1.07, 1.0)
"""Brightness factor of a colour's 1st, 2nd, … way of being said."""


@dataclass(frozen=True)
class Thing:
    """One drawn object: names from the lexicon, the way each is said, position and radius in pixels.

    ``*_say`` counts through ``words + descriptions`` of the concept.
    """

    object: str
    colour: str
    style: str
    object_say: int
    colour_say: int
    style_say: int
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A background with no, one or two things on it."""

    background: str
    things: tuple[Thing, ...]


def phrases(name: str) -> tuple[str, ...]:
    """All ways to say one concept, words first."""
    return CONCEPTS[name].words + CONCEPTS[name].descriptions


def _say(rng: random.Random, name: str, words_only: bool) -> int:
    concept = CONCEPTS[name]
    if not words_only and rng.random() < 0.25:
        return len(concept.words) + rng.randrange(len(concept.descriptions))
    return rng.randrange(len(concept.words))


def _thing(rng: random.Random, x: float, y: float, radius: float, taken: Thing | None, words_only: bool) -> Thing:
    name = rng.choice([o for o in OBJECT_NAMES if taken is None or o != taken.object])
    colour = rng.choice(COLOUR_NAMES)
    style = "plain" if rng.random() < 0.4 else rng.choice(STYLE_NAMES)
    say = (_say(rng, name, words_only), _say(rng, colour, words_only), _say(rng, style, words_only))
    return Thing(name, colour, style, *say, x, y, radius)


def sample_scene(rng: random.Random, two_objects: float = 0.25) -> Scene:
    """Draw a scene at random; ``two_objects`` is the share of scenes with two things in them."""
    background = rng.choice(BACKGROUND_NAMES)
    if rng.random() >= two_objects:
        x, y = rng.uniform(22, 42), rng.uniform(24, 42)
        return Scene(background, (_thing(rng, x, y, rng.uniform(12, 17), None, words_only=False),))
    first = _thing(rng, rng.uniform(15, 18), rng.uniform(22, 42), rng.uniform(10, 12), None, words_only=True)
    second = _thing(rng, rng.uniform(46, 49), rng.uniform(22, 42), rng.uniform(10, 12), first, words_only=True)
    return Scene(background, (first, second))
