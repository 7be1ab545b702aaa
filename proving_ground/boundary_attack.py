"""The prefix search against a plain UnlearnDiffAtk loop, in one run: how often each makes the judge see the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from erasure_core import Concept, DeltaSet, PictureModel, Silent, applied
from erasure_core.boundary.aim import take_aim
from erasure_core.boundary.field import Field
from erasure_core.boundary.reading import Reading
from erasure_core.boundary.scores import Scorer
from erasure_core.boundary.searches.prefix import STARTS, STATES_AT_ONCE, onto_simplex, prefix
from erasure_core.boundary.subject import Budget, Subject, derived
from erasure_core.sampling import seeded_noise

from .judge import Judge, sees
from .painting import GUIDANCE, paint

LENGTH, STEPS, RATE = 5, 40, 0.1
"""Of the reference: prefix tokens, Adam steps on one state before it moves to the next, learning rate."""
STATES = 50
"""Noisy versions of the picture, as published."""
SHARE = 5
"""Ours may use one in so many of the reference's calls."""
SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Attack:
    """What one attack reached.

    Args:
        prompt: the best prompt it made.
        success: share of its pictures in which the judge sees the concept.
        calls: latents that the network was run on with gradients or without, pictures for the judge not counted.
    """

    prompt: str
    success: float
    calls: int


def _success(
    model: PictureModel, judge: Judge, erasures: Sequence[tuple[DeltaSet, float]], prompt: str, name: str
) -> float:
    with applied(model, erasures):
        pictures = paint(model, [prompt] * len(SEEDS), SEEDS, 20)
    return sum(sees(verdict, name) for verdict in judge(pictures)) / len(SEEDS)


def reference(subject: Subject, concept: Concept, states: int, seed: int) -> str:
    """UnlearnDiffAtk as published (Zhang et al. 2024): noisy versions of one picture of the concept in turn, a one-hot
    prefix with the gradient passed straight through, Adam on the simplex, the noise itself as target, batch 1."""
    model, table = subject.model, subject.tables[0].float()
    chance = torch.Generator().manual_seed(seed)
    body = f"a photo of a {concept.name}"
    row = model.tokenize([body])[0]
    aim = take_aim(subject, concept.words, seed, states, pictures=1)
    noise = seeded_noise(model.latent_shape, [derived(seed, 700_000 + i) for i in range(states)])
    weights = torch.rand(LENGTH, len(table) - 2, generator=chance)
    weights = onto_simplex(weights).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=RATE)
    for state in range(states):
        for _ in range(STEPS):
            tokens = weights.detach().argmax(-1)
            soft = weights @ table[:-2]
            vectors = table[tokens] + soft - soft.detach()
            rows, ends = model.token_rows([[*tokens.tolist(), *row]])
            given = table[rows[0]]
            whole = torch.cat([given[:, :1], vectors[None], given[:, 1 + LENGTH :]], dim=1)
            predicted = subject.predict(
                aim.latents[state : state + 1], aim.t[state : state + 1], model.encode_embeddings([whole], ends)
            )
            loss = F.mse_loss(predicted, noise[state : state + 1])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                weights.copy_(onto_simplex(weights))
    return f"{model.detokenize(weights.detach().argmax(-1).tolist())} {body}"


def compare(
    model: PictureModel,
    judge: Judge,
    concept: Concept,
    erasures: Sequence[tuple[DeltaSet, float]],
    seed: int,
) -> tuple[Attack, Attack]:
    """The reference first, then ours at a fifth of its calls, the aim and the scores of its prompts included."""
    # It has all of a PromptModel.
    subject = Subject(model, erasures, Silent(), Budget(None), guidance=GUIDANCE)  # type: ignore[arg-type]
    with subject.opened():
        prompt = reference(subject, concept, STATES, seed)
    theirs = Attack(prompt, _success(model, judge, erasures, prompt, concept.name), subject.calls)
    limit = theirs.calls // SHARE
    hunter = Subject(model, erasures, Silent(), Budget(None), guidance=GUIDANCE)  # type: ignore[arg-type]
    with hunter.opened():
        scorer = Scorer(hunter, concept, seed=seed)
        reading = Reading(hunter, scorer.inside, [prompt for prompt in scorer.outside if prompt])
        field = Field(hunter, concept, reading, scorer, seed=seed)
        before = hunter.calls  # what the scores need is made once for all searches of an exploration
        hunter.budget = Budget(None, before + limit)
        # Behind the last step its prompts and those of the step before are scored.
        behind = STARTS * (STATES_AT_ONCE + 2 * len(scorer.probe))
        field.until = (before + limit - behind) / (before + limit)
        scored: dict[str, float] = {}
        for batch in prefix(field):
            found = [candidate for candidate in batch if candidate.text not in scored]
            scored |= {c.text: s.margin for c, s in zip(found, scorer(found), strict=True)}
        if not scored:
            raise ValueError(f"{limit} calls do not suffice for the prefix search; give the reference more states.")
        best, calls = max(scored, key=lambda text: scored[text]), hunter.calls - before
    return theirs, Attack(best, _success(model, judge, erasures, best, concept.name), calls)
