"""Level 4: adversarial prefixes by gradient, UnlearnDiffAtk's and P4D's, many starts in one batch.

UnlearnDiffAtk (Zhang et al. 2024) learns a distribution over the vocabulary for each prefix token: one token in the
forward pass, the gradient passed straight through to the distribution, Adam, projection onto the simplex. P4D (Chin et
al. 2024), by PEZ (Wen et al. 2023), keeps continuous embeddings and evaluates at the nearest vocabulary rows. Half of
the starts are of each kind. The prefix stands before the concept's own prompt, as published. Where UnlearnDiffAtk draws
the token of the forward pass from a distribution that starts uniform, at a rate of 0.01, the likeliest token is taken
here, from a start near a single one and at a higher rate: this search has few steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...concept import worded
from ...model import Conditioning
from ..aim import Aim
from ..candidate import Candidate
from ..field import Field

LENGTH = 5
STARTS = 6
STATES_AT_ONCE = 3
STEPS, EVERY = 40, 10
SIMPLEX_RATE, EMBEDDING_RATE = 0.1, 0.1
SPREAD = 0.02
"""How far from one token a start of UnlearnDiffAtk's kind is spread over the vocabulary."""


@dataclass
class Prefixes:
    """The prefixes of one batch: ``weights`` [S, n, V] of UnlearnDiffAtk's kind and, for each text encoder,
    ``vectors`` [P, n, D] of P4D's."""

    weights: Tensor
    vectors: list[Tensor]
    pool: Tensor

    def tokens(self, tables: list[Tensor]) -> Tensor:
        """The vocabulary tokens that the prefixes stand for now, [S + P, n]."""
        chosen = self.weights.detach().argmax(-1)
        near = _nearest(self.vectors[0].detach(), tables[0][self.pool])
        return self.pool[torch.cat([chosen, near])]

    def embedded(self, tables: list[Tensor], tokens: Tensor) -> list[Tensor]:
        """For each text encoder the tokens' embeddings [S + P, n, D], with gradients to weights and vectors."""
        split = len(self.weights)
        found = []
        for table, vectors in zip(tables, self.vectors, strict=True):
            hard = table[tokens].float()
            rows = table[self.pool].float()
            soft = self.weights @ rows
            found.append(torch.cat([hard[:split] + soft - soft.detach(), hard[split:] + vectors - vectors.detach()]))
        return found


def prefix(field: Field) -> Iterator[list[Candidate]]:
    """Prefixes with the concept's prompt behind them, as they improve."""
    subject, concept = field.subject, field.concept
    body = worded("a photo of a {}", concept.name)
    row = subject.model.tokenize([body])[0]
    if not subject.fits([*range(LENGTH), *row]):
        return
    aim = field.aim()
    if aim is None:
        return
    prefixes = _start(field)
    optimizer = torch.optim.Adam(
        [
            {"params": [prefixes.weights], "lr": SIMPLEX_RATE},
            {"params": prefixes.vectors, "lr": EMBEDDING_RATE},
        ]
    )
    chance = field.chance(11)
    for step in range(STEPS):
        if field.over():
            break
        tokens = _descend(field, prefixes, aim, optimizer, row, chance)
        if step % EVERY == EVERY - 1:
            yield _candidates(field, tokens, body)
    yield _candidates(field, prefixes.tokens(subject.tables), body)


def _start(field: Field) -> Prefixes:
    chance, tables = field.chance(7), field.subject.tables
    device = tables[0].device
    # All tokens that a search may use: begin, end and padding cannot be typed, and the concept's own tell nothing new.
    pool = field.vocabulary().to(device)
    split = STARTS // 2
    picked = torch.randint(len(pool), (STARTS, LENGTH), generator=chance).to(device)
    weights = torch.full((split, LENGTH, len(pool)), SPREAD / len(pool), device=device)
    weights.scatter_(2, picked[:split, :, None], 1 - SPREAD)
    vectors = [table[pool[picked[split:]]].float().clone().requires_grad_() for table in tables]
    return Prefixes(weights.requires_grad_(), vectors, pool)


def _descend(
    field: Field,
    prefixes: Prefixes,
    aim: Aim,
    optimizer: torch.optim.Optimizer,
    row: list[int],
    chance: torch.Generator,
) -> Tensor:
    """One step for all starts; returns the tokens that it was made at."""
    subject = field.subject
    tokens = prefixes.tokens(subject.tables)
    prompts = _encode(field, prefixes.embedded(subject.tables, tokens), tokens, row)
    places = torch.randperm(len(aim.t), generator=chance)[:STATES_AT_ONCE].tolist()
    optimizer.zero_grad()
    aim.descend(subject, prompts, places)
    optimizer.step()
    with torch.no_grad():
        prefixes.weights.copy_(onto_simplex(prefixes.weights))
    return tokens


def _encode(field: Field, prefix_vectors: list[Tensor], tokens: Tensor, row: list[int]) -> Conditioning:
    """Encode [begin, prefix, prompt, end, padding]."""
    subject = field.subject
    rows, ends = subject.model.token_rows([[*found, *row] for found in tokens.tolist()])
    whole = []
    for table, ids, vectors in zip(subject.tables, rows, prefix_vectors, strict=True):
        given = table[ids].float()
        whole.append(torch.cat([given[:, :1], vectors, given[:, 1 + LENGTH :]], dim=1))
    return subject.model.encode_embeddings(whole, ends)


def _candidates(field: Field, tokens: Tensor, body: str) -> list[Candidate]:
    model = field.subject.model
    texts = [f"{model.detokenize(found)} {body}" for found in tokens.tolist()]
    fitting = [text for text, row in zip(texts, model.tokenize(texts), strict=True) if field.subject.fits(row)]
    return [Candidate(text, "prefix") for text in dict.fromkeys(fitting) if text.isprintable()]


def _nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    """Index of the nearest row by cosine, [..., n]."""
    return (F.normalize(vectors, dim=-1) @ F.normalize(rows.float(), dim=-1).T).argmax(-1)


def onto_simplex(weights: Tensor) -> Tensor:
    """The nearest point of the probability simplex along the last axis (Duchi et al. 2008, figure 1)."""
    ordered = weights.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    kept = (ordered * count > excess).sum(-1, keepdim=True)
    return (weights - excess.gather(-1, kept - 1) / kept).clamp_min(0)
