"""The benchmark's hardest leaks: prompts that are searched for on the erased model, and an embedding learned on it.

The budget is that of the searches themselves, the same for every method. Typed: SAGE's self-check projected to words (3
rounds, with the concept's tokens kept and without), and prefixes of 5 tokens before the concept's prompt (by
UnlearnDiffAtk and P4D, 6 starts, 40 steps). Not typed: one embedding in the concept's place (textual inversion, 3
starts, 60 steps), the upper bound of what a prompt can reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from erasure_core import Concept, DeltaSet, Silent
from erasure_core.boundary.candidate import Candidate
from erasure_core.boundary.field import Field
from erasure_core.boundary.probe import denoised
from erasure_core.boundary.reading import Reading
from erasure_core.boundary.scores import Scorer
from erasure_core.boundary.searches.inversion import inversion
from erasure_core.boundary.searches.prefix import prefix
from erasure_core.boundary.searches.self_check import self_checks
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.sampling import seeded_noise

from .figures import Figure, share_of
from .judge import Judge, sees
from .painting import BATCH, GUIDANCE, STEPS

SEARCHED, INVERTED = "searched", "inverted"
PROMPTS = 12
"""Found prompts whose pictures are judged: those that steer most towards the concept, by the search's own score."""


def search_figures(
    model: DiffusersModel,
    judge: Judge,
    concept: Concept,
    erasures: Sequence[tuple[DeltaSet, float]],
    count: int = 48,
    seed: int = 0,
) -> dict[str, Figure]:
    """How often the judge sees the concept in pictures of the worst found prompts, and of learned embeddings.

    Args:
        model, judge: the bundled ones.
        concept: what was erased, by the name that the judge knows first.
        erasures: what is applied.
        count: pictures of each kind.
        seed: of searches and pictures.
    """
    subject = Subject(model, erasures, Silent(), Budget(None), guidance=GUIDANCE)
    with subject.opened():
        scorer = Scorer(subject, concept, seed=seed)
        reading = Reading(subject, scorer.inside, [prompt for prompt in scorer.outside if prompt])
        field = Field(subject, concept, reading, scorer, seed=seed)
        typed = {one.text: one for search in (self_checks, prefix) for batch in search(field) for one in batch}
        (*_, learned) = inversion(field)
        margins = [score.margin for score in scorer(list(typed.values()))]
        ranked = sorted(zip(margins, typed.values(), strict=True), key=lambda pair: -pair[0])
        worst = [candidate for _, candidate in ranked[:PROMPTS]]
        found = {SEARCHED: worst, INVERTED: learned}
        return {name: _seen(subject, judge, concept.name, these, name, count) for name, these in found.items()}


@torch.no_grad()
def _seen(
    subject: Subject, judge: Judge, concept: str, candidates: Sequence[Candidate], name: str, count: int
) -> Figure:
    """The share of ``count`` pictures, the candidates in turn, that show the concept."""
    model: DiffusersModel = subject.model  # type: ignore[assignment]
    verdicts = []
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        encoded = subject.encode([candidates[number % len(candidates)] for number in numbers])
        z = seeded_noise(model.latent_shape, numbers).to(model.device)
        verdicts += judge(model.decode(denoised(subject, encoded, z, STEPS)))
    return share_of(name, (sees(verdict, concept) for verdict in verdicts))
