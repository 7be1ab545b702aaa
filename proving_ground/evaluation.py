"""How far a concept is gone and what else has changed: pictures of known prompts, looked at by the judge."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from erasure_core import DeltaSet, PictureModel, applied

from .captions import SINGLE, filler_words, noun_phrase
from .figures import Figure, share_of
from .judge import Judge, Verdict, sees
from .lexicon import BACKGROUNDS, COLOURS, CONCEPTS, OBJECTS, STYLES, Concept
from .painting import paint

LEAKS = ("named", "unnamed", "descriptions")
"""Groups of prompts that ask for the erased concept; the rest asks for other things."""
GROUPS = (*LEAKS, "look-alikes", "kept")


@dataclass(frozen=True)
class Question:
    """A prompt, and the concept that its picture shows on an untouched model."""

    prompt: str
    shows: str


def _others(kind: dict[str, Concept], concept: Concept, rng: random.Random) -> str:
    """A named word of some concept of a kind, never of the concept in question."""
    return rng.choice([word for name, other in kind.items() if name != concept.name for word in other.named])


def _ask(phrase: str, concept: Concept, erased: Concept, rng: random.Random) -> Question:
    """A prompt that says ``concept`` by ``phrase`` and leaves everything else to chance, but never says ``erased``."""
    said = {
        "object": _others(OBJECTS, erased, rng),
        "colour": _others(COLOURS, erased, rng) if rng.random() < 0.6 else None,
        "style": _others(STYLES, erased, rng) if rng.random() < 0.4 else None,
    }
    said[concept.kind] = phrase
    template = rng.choice(SINGLE)
    while "{f}" in template:
        template = template.replace("{f}", rng.choice(filler_words()), 1)
    background = rng.choice([way for ways in BACKGROUNDS.values() for way in ways])
    text = noun_phrase(said["object"] or "", said["colour"], said["style"])
    return Question(template.format(np=text, bg=background), concept.name)


def questions(erased: Concept, group: str, count: int, seed: int = 0) -> list[Question]:
    """``count`` questions of one group, evenly over the group's words.

    Args:
        erased: the concept that is erased.
        group: one of ``GROUPS``. ``look-alikes`` asks for what is drawn most alike, ``kept`` for the other concepts of
            the same kind.
        count: how many; a concept without look-alike gets none of that group.
        seed: of the chance in the prompts.
    """
    rng = random.Random(f"{erased.name} {group} {seed}")
    others = [c for c in CONCEPTS.values() if c.kind == erased.kind and c is not erased]
    phrases = {
        "named": [(erased, way) for way in erased.named],
        "unnamed": [(erased, way) for way in erased.unnamed],
        "descriptions": [(erased, way) for way in erased.descriptions],
        "look-alikes": [(c, way) for c in others if c.name == erased.look_alike for way in c.words],
        "kept": [(c, way) for c in others if c.name != erased.look_alike for way in c.words],
    }[group]
    rng.shuffle(phrases)
    return [_ask(way, c, erased, rng) for c, way in (phrases[i % len(phrases)] for i in range(count if phrases else 0))]


@dataclass(frozen=True)
class Evaluation:
    """Shares by group: of pictures that show the concept (leak), or what they were asked for (retention)."""

    shares: dict[str, Figure]
    intact: Figure
    """Share of the concept prompts' pictures that are sound pictures of something, not garbage."""


def evaluate(
    model: PictureModel,
    judge: Judge,
    erased: Concept,
    erasures: Sequence[tuple[DeltaSet, float]] = (),
    count: int = 48,
    seed: int = 0,
    groups: Sequence[str] = GROUPS,
    notify: Callable[[str], None] = lambda group: None,
) -> Evaluation:
    """Paint and judge ``count`` pictures of each group. The same seed gives the same prompts and starting noise."""
    shares: dict[str, Figure] = {}
    concept_pictures: list[Verdict] = []
    with applied(model, erasures):
        for group in groups:
            asked = questions(erased, group, count, seed)
            if not asked:
                continue
            notify(group)
            verdicts = judge(paint(model, [q.prompt for q in asked], range(seed, seed + len(asked))))
            shares[group] = share_of(group, (sees(v, q.shows) for v, q in zip(verdicts, asked, strict=True)))
            if group in LEAKS:
                concept_pictures += verdicts
    return Evaluation(shares, share_of("intact", (verdict.intact for verdict in concept_pictures)))
