"""How far a concept is gone and what else has changed: pictures of known prompts, looked at by the judge."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erasure_core import DeltaSet, PictureModel, applied
from erasure_core.sampling import seeded_noise

from .captions import DOUBLE, SINGLE, filler_words, noun_phrase
from .figures import Figure, Measure, mean_of, norm_ratio_of, share_of
from .judge import Judge, Verdict, sees
from .lexicon import BACKGROUNDS, COLOURS, OBJECTS, STYLES, Concept
from .painting import paint

LEAKS = ("named", "unnamed", "descriptions")
"""Groups of prompts that ask for the erased concept; their figure is how often the judge sees it."""
RETENTION = ("look-alikes", "kept", "attributes", "two objects")
"""Groups whose figure is how often the judge sees something else that the prompt asks for."""
GROUPS = (*LEAKS, *RETENTION)
OTHERS = ("look-alikes", "kept")
"""Groups of prompts that do not say the concept at all."""
KINDS: dict[str, dict[str, Concept]] = {"object": OBJECTS, "colour": COLOURS, "style": STYLES}


@dataclass(frozen=True)
class Question:
    """A prompt, and a concept that its picture shows on an untouched model."""

    prompt: str
    shows: str


def _fill(templates: Sequence[str], rng: random.Random, **parts: str) -> str:
    template = rng.choice(templates)
    while "{f}" in template:
        template = template.replace("{f}", rng.choice(filler_words()), 1)
    background = rng.choice([way for ways in BACKGROUNDS.values() for way in ways])
    return template.format(bg=background, **parts)


def _another(kind: str, rng: random.Random, *never: str) -> Concept:
    return rng.choice([concept for name, concept in KINDS[kind].items() if name not in never])


def _ask(concept: Concept, phrase: str, erased: Concept, rng: random.Random, show_other: bool = False) -> Question:
    """A prompt that says ``concept`` by ``phrase`` and leaves the rest to chance, but never says ``erased``.

    With ``show_other`` the question is about another attribute that the prompt asks for.
    """
    said = {kind: _another(kind, rng, erased.name) for kind in KINDS}
    told = {"object": True, "colour": rng.random() < 0.6, "style": rng.random() < 0.4}
    about = {"object": "colour", "colour": "object", "style": "object"}[concept.kind]
    told[about] = told[about] or show_other
    words: dict[str, str | None] = {k: rng.choice(said[k].named) if told[k] else None for k in KINDS}
    words[concept.kind] = phrase
    text = noun_phrase(words["object"] or "", words["colour"], words["style"])
    return Question(_fill(SINGLE, rng, np=text), said[about].name if show_other else concept.name)


def _ask_two(phrase: str, erased: Concept, rng: random.Random) -> Question:
    """A prompt for two objects, one of them or one's attribute being the erased concept; the question is the other."""
    other = _another("object", rng, erased.name)
    first = _another("object", rng, erased.name, other.name)
    words: dict[str, str | None] = {"object": rng.choice(first.named), "colour": None, "style": None}
    words[erased.kind] = phrase
    pair = [
        noun_phrase(words["object"] or "", words["colour"], words["style"]),
        noun_phrase(rng.choice(other.named), rng.choice(_another("colour", rng, erased.name).named)),
    ]
    rng.shuffle(pair)
    return Question(_fill(DOUBLE, rng, np=pair[0], np2=pair[1]), other.name)


def questions(erased: Concept, group: str, count: int, seed: int = 0) -> list[Question]:
    """``count`` questions of one group, evenly over the group's words.

    Args:
        erased: the concept that is erased.
        group: one of ``GROUPS``. ``look-alikes`` asks for what is drawn most alike, ``kept`` for the other concepts of
            the same kind, ``attributes`` for another attribute in a prompt that says the concept, ``two objects`` for
            the object beside it.
        count: how many; a concept without look-alike gets none of that group.
        seed: of the chance in the prompts.
    """
    rng = random.Random(f"{erased.name} {group} {seed}")
    others = [concept for concept in KINDS[erased.kind].values() if concept is not erased]
    ways = {
        "named": [(erased, way) for way in erased.named],
        "unnamed": [(erased, way) for way in erased.unnamed],
        "descriptions": [(erased, way) for way in erased.descriptions],
        "look-alikes": [(c, way) for c in others if c.name == erased.look_alike for way in c.words],
        "kept": [(c, way) for c in others if c.name != erased.look_alike for way in c.words],
        "attributes": [(erased, way) for way in erased.named],
        "two objects": [(erased, way) for way in erased.named],
    }[group]
    rng.shuffle(ways)
    chosen = [ways[i % len(ways)] for i in range(count if ways else 0)]
    if group == "two objects":
        return [_ask_two(way, erased, rng) for _, way in chosen]
    return [_ask(concept, way, erased, rng, show_other=group == "attributes") for concept, way in chosen]


@dataclass(frozen=True)
class Evaluation:
    """What was seen.

    Args:
        shares: by group, of pictures that show the concept (leak) or what else they were asked for (retention).
        intact: of the pictures for prompts with the concept, those that are sound pictures of something.
        unasked: of the pictures for prompts without the concept, those in which the judge sees it. On the untouched
            model that is the floor of all leaks: the judge's mistakes and the model's.
        pictures: by group, uint8 [B, 3, 64, 64].
    """

    shares: dict[str, Figure]
    intact: Figure
    unasked: Figure
    pictures: dict[str, Tensor]


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
    pictures: dict[str, Tensor] = {}
    of_concept: list[Verdict] = []
    of_others: list[Verdict] = []
    with applied(model, erasures):
        for group in groups:
            asked = questions(erased, group, count, seed)
            if not asked:
                continue
            notify(group)
            pictures[group] = paint(model, [q.prompt for q in asked], range(seed, seed + len(asked)))
            verdicts = judge(pictures[group])
            shares[group] = share_of(group, (sees(v, q.shows) for v, q in zip(verdicts, asked, strict=True)))
            if group in LEAKS:
                of_concept += verdicts
            elif group in OTHERS:
                of_others += verdicts
    intact = share_of("intact", (verdict.intact for verdict in of_concept))
    unasked = share_of("unasked", (sees(verdict, erased.name) for verdict in of_others))
    return Evaluation(shares, intact, unasked, pictures)


def picture_distance(before: Tensor, after: Tensor) -> Measure:
    """Mean absolute difference of same-seed pictures, as a share of the full range of brightness."""
    return mean_of(((before.float() - after.float()).abs().flatten(1).mean(1) / 255).tolist())


@torch.no_grad()
def unconditional_drift(model: PictureModel, erasures: Sequence[tuple[DeltaSet, float]], count: int = 64) -> Measure:
    """||eps(z, "") - eps0(z, "")|| / ||eps0(z, "")|| over random noisy latents at evenly spread timesteps."""
    z = seeded_noise(model.latent_shape, range(count)).to(model.device)
    t = torch.linspace(20, len(model.schedule) - 1, count).long().to(model.device)
    before = model.schedule.noise_of(z, t, model.predict(z, t, model.encode([""] * count)))
    with applied(model, erasures):
        after = model.schedule.noise_of(z, t, model.predict(z, t, model.encode([""] * count)))
    squares = [x.double().square().flatten(1).sum(1).tolist() for x in (after - before, before)]
    return norm_ratio_of(squares[0], squares[1])
