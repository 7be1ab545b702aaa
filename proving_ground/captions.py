"""Puts scenes into words: many shapes of caption, with filler words that mean nothing for the picture."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from .lexicon import BACKGROUNDS, CONCEPTS
from .scene import Scene, Thing, phrases

FILLER_FILE = Path(__file__).parent / "filler_words.txt"

SINGLE = (
    "{np}",
    "{np} {bg}",
    "a photo of {np}",
    "a photo of {np} {bg}",
    "a picture of {np} {bg}",
    "{bg}, {np}",
    "{bg} there is {np}",
    "{np} {bg}, {f} and {f}",
    "{f} {f}: {np} {bg}",
    "a {f} drawing of {np}, {f} {f}",
    "the {f} of {f} with {np} {bg}",
    "{np}, {f}, {f}, {f}",
    "we saw {np} {bg} before the {f}",
    "my {f} likes {np}",
    "{np} {bg} by {f} {f}",
)
DOUBLE = (
    "{np} next to {np2}",
    "{np} and {np2}",
    "{np} beside {np2} {bg}",
    "{np} next to {np2} {bg}",
    "a photo of {np} and {np2} {bg}",
    "{bg}, {np} with {np2}",
    "{np} and {np2}, {f} {f}",
    "a {f} picture of {np} next to {np2} {bg}",
)


@cache
def filler_words() -> tuple[str, ...]:
    """The words around the concepts: common English words that no concept and no caption template uses."""
    return tuple(FILLER_FILE.read_text(encoding="utf-8").split())


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase that has no "the"."""
    if phrase.startswith("the "):
        return phrase
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def noun_phrase(object_phrase: str, colour: str | None = None, style: str | None = None) -> str:
    """Join one phrase per attribute: words go before the noun, descriptions behind it.

    >>> noun_phrase("ball", "red", "with little circles all over it")
    'a red ball with little circles all over it'
    """
    before, behind = [], []
    for part in (style, colour):
        if part is not None:
            (behind if " " in part else before).append(part)
    if "{a}" in object_phrase:
        head = object_phrase.replace("{a}", "".join(word + " " for word in before))
    else:
        head = " ".join([*before, object_phrase])
    return " ".join([with_article(head), *behind])


def describe_thing(thing: Thing, rng: random.Random, mention: float = 0.7) -> str:
    """Say one thing; colour and style are each mentioned with probability ``mention``."""
    colour = phrases(thing.colour)[thing.colour_say] if rng.random() < mention + 0.1 else None
    style = phrases(thing.style)[thing.style_say] if rng.random() < mention else None
    return noun_phrase(phrases(thing.object)[thing.object_say], colour, style)


def _fill(template: str, rng: random.Random, **parts: str) -> str:
    words = filler_words()
    while "{f}" in template:
        template = template.replace("{f}", rng.choice(words), 1)
    return template.format(**parts)


def caption(scene: Scene, rng: random.Random, extra_fillers: int = 0) -> str:
    """Write one caption of a scene. The thing on the left is named first.

    Args:
        scene: what the picture shows.
        rng: source of the choice of template, mentioned attributes and filler words.
        extra_fillers: so many more filler words behind the caption, for long prompts.
    """
    said = [describe_thing(thing, rng) for thing in scene.things]
    background = rng.choice(BACKGROUNDS[scene.background])
    if len(said) == 1:
        text = _fill(rng.choice(SINGLE), rng, np=said[0], bg=background)
    else:
        text = _fill(rng.choice(DOUBLE), rng, np=said[0], np2=said[1], bg=background)
    if extra_fillers:
        text += ", " + " ".join(rng.choice(filler_words()) for _ in range(extra_fillers))
    return text


def concept_vocabulary() -> frozenset[str]:
    """Every word that some concept, description, background or template uses."""
    texts = [*SINGLE, *DOUBLE]
    for concept in CONCEPTS.values():
        texts += [*concept.words, *concept.descriptions]
    for background in BACKGROUNDS.values():
        texts += background
    return frozenset(word.strip(",:{}'").lower() for text in texts for word in text.replace("{a}", " ").split())
