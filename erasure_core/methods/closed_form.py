"""Instant erasure: a closed-form edit of the keys and values of cross-attention, as an exact low-rank change.

UCE minimises over each W: sum_i ||W' c_i - W a_i||^2 + sum_r ||W' r - W r||^2 + lambda ||W' - W||^2, with c_i the token
vectors of the concept, a_i those that take their place and r those to keep. Its solution can be written

    W' - W = (W D) F,   D = A - C,   F = (first rows of) (lambda I + V^T V)^-1 V^T,   V = [C R]

because C^T (lambda I + V V^T)^-1 equals the rows of (lambda I + V^T V)^-1 V^T that belong to C (push-through identity,
the Woodbury form). F is the same for all layers, so one small system serves the whole network, and the rank of the
change is at most the number of distinct concept token vectors: the last word's, and those of the end and padding tokens
behind it, which differ with their position. Most of these are nearly alike, so ``tolerance`` cuts the rank far below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ..concept import Concept
from ..delta import DeltaSet, LowRankDelta
from ..errors import Cancelled, InvalidSettings
from ..layers import reads_context, select
from ..model import Conditioning, LoadedModel, has_room
from ..progress import Progress, Report
from ..trajectory import encode_each
from .registry import SolverSettings, option, solver

EIGEN_NOISE = 1e-7
"""Singular values below this share of the largest are lost when they are roots of eigenvalues in float64."""

SAME = 1e-4
"""Token vectors that differ by less, as a share of the largest entry, are those of equal words before the concept, for
models that cannot be asked for tokens."""


@dataclass(frozen=True)
class ClosedFormSettings(SolverSettings):
    """Settings of the closed form."""

    replace: bool = option(True, "without an alternative, the likest word of your kept prompts takes the place")
    damping: float = option(0.1, "lambda: pull towards the old weights", low=1e-8, high=1e4)
    keep_weight: float = option(1.0, "weight of each kept token against a concept token", low=0.0, high=1e4)
    tolerance: float = option(1e-4, "singular values below this share of the largest are dropped", low=0.0, high=0.5)
    rank: int = option(0, "largest rank of the change; 0 sets no limit", low=0, high=1024)


def partings(model: LoadedModel, prompts: Sequence[str], replacements: Sequence[str]) -> list[int] | None:
    """For each prompt the row at which its replacement's tokens begin to differ, the begin token being row 0; ``None``
    for models that cannot be asked. Token vectors would not tell in 16 bits: there, equal words before the concept
    differ by rounding."""
    if not hasattr(model, "tokenize"):
        return None
    asked: Any = model
    pairs = zip(asked.tokenize(list(prompts)), asked.tokenize(list(replacements)), strict=True)
    return [1 + sum(1 for _ in takewhile(lambda same: same[0] == same[1], zip(*pair, strict=False))) for pair in pairs]


def subject_rows(
    prompts: Conditioning, replacements: Conditioning, parted: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Token vectors from where a prompt and its replacement part to the end of the padding, paired by their distance
    from the end token. Where words are missing in the replacement, the last of them is paired with what stands before.

    Args:
        prompts, replacements: N of each.
        parted: what ``partings`` says of them.

    Returns:
        Concept vectors C and their replacements A, both float64 [P, D] (rows are vectors).
    """
    concept, instead = [], []
    for i in range(len(prompts)):
        c, a = prompts.context[i].cpu().double(), replacements.context[i].cpu().double()
        apart = ((c - a).abs().amax(dim=1) > SAME * c.abs().amax()).tolist()
        first = parted[i] if parted is not None else apart.index(True) if any(apart) else len(c)
        longer = prompts.ends[i] - replacements.ends[i]
        start = first + longer - 1 if longer > 0 else first
        shared = len(c) - max(start, start - longer)
        concept.append(c[start : start + shared])
        instead.append(a[start - longer : start - longer + shared])
    return torch.cat(concept), torch.cat(instead)


def kept_rows(prompts: Conditioning) -> Tensor:
    """All token vectors of the kept prompts, each distinct one once, float64 [K, D]."""
    rows: Tensor = torch.unique(prompts.context.flatten(0, 1).cpu().double(), dim=0)
    return rows


def shared_factor(concept: Tensor, kept: Tensor, damping: float) -> Tensor:
    """F of the module's docstring, [P, D], by whichever of the two equal forms has the smaller system."""
    vectors = torch.cat([concept, kept])
    count, width = vectors.shape
    if count < width:
        gram = vectors @ vectors.T + damping * torch.eye(count, dtype=vectors.dtype)
        factor: Tensor = torch.linalg.solve(gram, vectors)[: len(concept)]
        return factor
    moment = vectors.T @ vectors + damping * torch.eye(width, dtype=vectors.dtype)
    transposed: Tensor = torch.linalg.solve(moment, concept.T)
    return transposed.T


def low_rank_product(
    difference: Tensor, factor: Tensor, rank: int = 0, tolerance: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """D F as ``up @ down`` of least rank: D^T is ``difference`` [P, D], F is ``factor`` [P, D].

    Args:
        difference: what each concept vector moves by.
        factor: how much of each concept vector is in a token vector.
        rank: largest rank; 0 sets no limit.
        tolerance: singular values below this share of the largest are dropped.

    Returns:
        up [D, r] and down [r, D].
    """
    q_up, r_up = torch.linalg.qr(difference.T)
    q_down, r_down = torch.linalg.qr(factor.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    keep = max(1, int((s > tolerance * s[0]).sum())) if s[0] > 0 else 1
    keep = min(keep, rank) if rank else keep
    root = s[:keep].sqrt()
    return q_up @ (u[:, :keep] * root), (root[:, None] * vh[:keep]) @ q_down.T


def solved_change(
    concept: Tensor, instead: Tensor, kept: Tensor, damping: float, rank: int = 0, tolerance: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """D F of the module's docstring as ``up @ down``, by whichever way is shorter.

    With more concept vectors P than the width D, F itself is never made: D F = ((A - C)^T C) (lambda I + V V^T)^-1 has
    two products of cost P D^2, where making F and then D F takes six.

    Args:
        concept, instead: C and A, [P, D].
        kept: R, [K, D].
        damping: lambda.
        rank, tolerance: as of ``low_rank_product``.

    Returns:
        up [D, r] and down [r, D].
    """
    if not len(concept):
        return concept.new_zeros(concept.shape[1], 1), concept.new_zeros(1, concept.shape[1])
    if len(concept) <= concept.shape[1]:
        return low_rank_product(instead - concept, shared_factor(concept, kept, damping), rank, tolerance)
    moment = concept.T @ concept + kept.T @ kept + damping * torch.eye(concept.shape[1], dtype=concept.dtype)
    mixed = (instead - concept).T @ concept
    return _truncated(torch.cholesky_solve(mixed.T, torch.linalg.cholesky(moment)).T, rank, tolerance)


def _truncated(square: Tensor, rank: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """A square matrix as ``up @ down`` of least rank, from the eigenvectors of S S^T: several times faster than its
    singular value decomposition, and as good down to the square root of the rounding error."""
    values, vectors = torch.linalg.eigh(square @ square.T)
    singular = values.flip(0).clamp_min(0).sqrt()
    keep = max(1, int((singular > max(tolerance, EIGEN_NOISE) * singular[0]).sum()))
    keep = min(keep, rank) if rank else keep
    basis, root = vectors.flip(1)[:, :keep], singular[:keep].clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    return basis * root, (basis.T @ square) / root[:, None]


def vectors(model: LoadedModel, concept: Concept, settings: ClosedFormSettings) -> tuple[Tensor, Tensor, Tensor]:
    """C, A and R of the module's docstring, R with its weight."""
    sayings = concept.sayings(settings.contexts, partial(has_room, model))
    said, other = [saying.prompt for saying in sayings], [saying.instead for saying in sayings]
    subject, instead = subject_rows(encode_each(model, said), encode_each(model, other), partings(model, said, other))
    keep = dict.fromkeys([*concept.kept_prompts, *(saying.without for saying in sayings)])
    return subject, instead, kept_rows(model.encode(list(keep))) * settings.keep_weight**0.5


@solver(
    "closed_form",
    "Closed form (instant erase)",
    "Gandikota et al. 2024, Unified Concept Editing in Diffusion Models, arXiv 2308.14761, eq. 7",
    "reimplementation, exact in low-rank form",
    ClosedFormSettings,
)
@torch.no_grad()
def closed_form(model: LoadedModel, concept: Concept, settings: ClosedFormSettings, progress: Progress) -> DeltaSet:
    """The change of every layer that reads the prompt."""
    layers = {name: layer for name, layer in select(model.layers(), settings.layers).items() if reads_context(name)}
    if not layers:
        raise InvalidSettings("The closed form edits keys and values of cross-attention; choose layers with them.")
    subject, instead, kept = vectors(model, concept, settings)
    up, down = solved_change(subject, instead, kept, settings.damping, settings.rank, settings.tolerance)
    # The small system needs float64; the products with the layers' weights do not.
    narrow = up.to(model.device, torch.float32)
    deltas = {}
    for step, name in enumerate(layers):
        if progress.cancelled():
            raise Cancelled("Stopped while solving.")
        weight = model.weight(name).to(model.device, torch.float32)
        deltas[name] = LowRankDelta(down.float(), (weight @ narrow).cpu())
        progress.update(Report("solving", step + 1, len(layers)))
    return DeltaSet(deltas)
