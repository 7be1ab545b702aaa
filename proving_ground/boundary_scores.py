"""How well each score of boundary exploration predicts what the judge sees."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from erasure_core import Concept, DeltaSet, PictureModel, Silent, applied
from erasure_core.boundary.candidate import Candidate
from erasure_core.boundary.evidence import of_concept
from erasure_core.boundary.evidence import paint as paint_latents
from erasure_core.boundary.reading import Reading
from erasure_core.boundary.scores import Scorer
from erasure_core.boundary.subject import Budget, Subject

from . import lexicon
from .captions import noun_phrase
from .evaluation import KINDS
from .judge import Judge, sees
from .lexicon import OBJECTS
from .painting import GUIDANCE, paint

SEEDS_EACH, STEPS = 4, 20
BACKGROUNDS = ("", " in the sky", " at night", " on the grass")


@dataclass(frozen=True)
class Asked:
    """A prompt of the test.

    Args:
        text: the prompt.
        about: the concept that it says.
        leak: share of its pictures in which the judge sees the erased concept.
        scores: by name.
    """

    text: str
    about: str
    leak: float
    scores: dict[str, float]

    @property
    def leaks(self) -> bool:
        return self.leak >= 0.5


def prompts(erased: lexicon.Concept, rng: random.Random) -> list[tuple[str, str]]:
    """(prompt, concept it says): every way to say the concept and its look-alike, and two of each other concept."""
    asked = []
    for concept in KINDS[erased.kind].values():
        near = concept.name in (erased.name, erased.look_alike)
        ways = concept.words + concept.descriptions
        for way in ways if near else rng.sample(ways, 2):
            for start in ("", "a photo of ") if near else ("",):
                said = {erased.kind: way} if erased.kind != "object" else {}
                head = way if erased.kind == "object" else rng.choice(list(OBJECTS))
                asked.append((f"{start}{noun_phrase(head, **said)}{rng.choice(BACKGROUNDS)}", concept.name))
    return asked


@torch.no_grad()
def score_prompts(
    model: PictureModel,
    judge: Judge,
    erased: lexicon.Concept,
    concept: Concept,
    erasures: Sequence[tuple[DeltaSet, float]],
) -> tuple[list[Asked], float]:
    """Every prompt with the judge's view and all scores, and the posterior's threshold."""
    asked = prompts(erased, random.Random(erased.name))
    with applied(model, erasures):
        repeated = [text for text, _ in asked for _ in range(SEEDS_EACH)]
        pictures = paint(model, repeated, range(len(repeated)), STEPS)
    seen = (
        torch.tensor([sees(verdict, erased.name) for verdict in judge(pictures)]).float().view(-1, SEEDS_EACH).mean(1)
    )
    # It has all of a PromptModel.
    subject = Subject(model, erasures, Silent(), Budget(None), guidance=GUIDANCE)  # type: ignore[arg-type]
    with subject.opened():
        scorer = Scorer(subject, concept)
        candidates = [Candidate(text, "test") for text, _ in asked]
        found = scorer(candidates)
        reading = Reading(subject, scorer.inside, [text for text in scorer.outside if text])
        read = reading.leak(reading.read(candidates, short=False)).tolist()
        look = of_concept(subject, scorer)
        latents = torch.cat([paint_latents(subject, candidates[i : i + 16], 0) for i in range(0, len(candidates), 16)])
        evidence = look(latents)
    rows = [
        Asked(text, about, float(leak), {"posterior": s.margin, "residual": s.residual, "reading": r, "evidence": e})
        for (text, about), leak, s, r, e in zip(asked, seen, found, read, evidence, strict=True)
    ]
    return rows, scorer.threshold


def auc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """The chance that a positive scores higher than a negative; ``None`` where one of the two is missing."""
    if not positive or not negative:
        return None
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def aucs(rows: Sequence[Asked], erased: lexicon.Concept, name: str) -> dict[str, float | None]:
    """Of one score: over all prompts, and against the look-alike's alone."""
    positive = [row.scores[name] for row in rows if row.leaks]
    negative = [row.scores[name] for row in rows if not row.leaks]
    alike = [row.scores[name] for row in rows if not row.leaks and row.about == erased.look_alike]
    return {"overall": auc(positive, negative), "look-alikes": auc(positive, alike)}
