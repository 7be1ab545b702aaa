"""Instant erasure: a closed-form edit of the keys and values of cross-attention, as a change of low rank.

UCE minimises over each W: sum_i ||W' c_i - W a_i||^2 + sum_r ||W' r - W r||^2 + lambda ||W' - W||^2, with c_i the token
vectors of the concept, a_i those that take their place and r those to keep. Its solution changes every layer by the
same matrix of the text's width,

    W' - W = W X,   X = B M^-1,   B = (A - C) C^T,   M = C C^T + R R^T + lambda I

so one system serves the whole network. The rank of X is at most the number of distinct concept token vectors: the last
word's, and those of the end and padding tokens behind it, which differ with their position: thousands, where the
concept is said in many prompts. Few of these directions matter. What a rank costs is known exactly: for any X',

    objective(X') - objective(X) = ||(X' - X) M^(1/2)||^2

so the best change of rank r is U U^T X, with U the first r left singular vectors of X M^(1/2) (reduced-rank regression,
Izenman 1975). Cutting X by its own singular values instead would keep what moves directions that hardly any token has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor, nn

from ..broken_model import check_model
from ..concept import Concept
from ..delta import DeltaSet, LowRankDelta
from ..errors import Cancelled, InvalidSettings, ModelError
from ..layers import reads_context, select
from ..model import Conditioning, LoadedModel, as_prompt_model, encode_each, encoded_pieces, has_room
from ..progress import Progress, Report
from .registry import SolverSettings, option, solver

SKETCHED = 1024
"""Width above which a few singular vectors are sought by random projection, before all of them are computed."""

SAME = 1e-4
"""Token vectors that differ by less, as a share of the largest entry, are those of equal words before the concept, for
models that cannot be asked for tokens."""


@dataclass(frozen=True)
class ClosedFormSettings(SolverSettings):
    """Settings of the closed form."""

    damping: float = option(0.1, "lambda: pull towards the old weights", low=1e-8, high=1e4)
    keep_weight: float = option(1.0, "weight of each kept token against a concept token", low=0.0, high=1e4, basic=True)
    tolerance: float = option(
        1e-2, "share of what the change achieves that a lower rank may give up; 0 is exact", low=0.0, high=0.9
    )
    rank: int = option(0, "largest rank of the change; 0 sets no limit", low=0, high=1024, basic=True)


def partings(model: LoadedModel, prompts: Sequence[str], replacements: Sequence[str]) -> list[int] | None:
    """For each prompt the row at which its replacement's tokens begin to differ, the begin token being row 0; ``None``
    for models that cannot be asked. Token vectors would not tell in 16 bits: there, equal words before the concept
    differ by rounding."""
    asked = as_prompt_model(model)
    if asked is None:
        return None
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


def kept_rows(prompts: Iterable[Conditioning]) -> Tensor:
    """All token vectors of the kept prompts, each distinct one once, float64 [K, D].

    They come some at a time: of thousands, SDXL's text encoders make gigabytes, most of it alike.
    """
    found = [torch.unique(some.context.flatten(0, 1).cpu(), dim=0) for some in prompts]
    rows: Tensor = torch.unique(torch.cat(found), dim=0)
    return rows.double()


def solved_change(
    concept: Tensor, instead: Tensor, kept: Tensor, damping: float, rank: int = 0, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """X of the module's docstring as ``up @ down``, the most important direction first.

    Args:
        concept, instead: C and A, float64 [P, D] (rows are vectors).
        kept: R, float64 [K, D].
        damping: lambda.
        rank: largest rank; 0 sets no limit.
        tolerance: share of the objective's fall that the rank may be cut by.

    Returns:
        up [D, r], with columns as long as the rows of down [r, D].
    """
    width = concept.shape[1]
    if not len(concept):
        return concept.new_zeros(width, 1), concept.new_zeros(1, width)
    moment = _lower_moment(torch.cat([concept, kept]))
    # A smaller lambda would be lost in rounding, and the sum not be positive definite.
    least = torch.finfo(moment.dtype).eps * width * float(moment.diagonal().max())
    moment.diagonal().add_(max(damping, least))
    root = torch.linalg.cholesky(moment)
    # X M^(1/2) up to a rotation that leaves its left singular vectors alone: (root^-1 B^T)^T.
    achieved = torch.linalg.solve_triangular(root, concept.T @ (instead - concept), upper=False)
    up = _leading(achieved, min(len(concept), width, rank or width), tolerance)
    down = torch.linalg.solve_triangular(root.T, achieved @ up, upper=True).T
    length = down.norm(dim=1).clamp_min(torch.finfo(down.dtype).tiny).sqrt()
    return up * length, down / length[:, None]


def _lower_moment(rows: Tensor, block: int = 256) -> Tensor:
    """The lower half of V V^T, which is all that a Cholesky factorisation reads; ``rows`` [N, D] are vectors."""
    moment = rows.new_zeros(rows.shape[1], rows.shape[1])
    for first in range(0, rows.shape[1], block):
        moment[first:, first : first + block] = rows[:, first:].T @ rows[:, first : first + block]
    return moment


def _leading(matrix: Tensor, most: int, tolerance: float) -> Tensor:
    """As few right singular vectors of a square matrix as leave out at most ``tolerance`` of its squared norm, in
    falling order, [D, r] with r from 1 to ``most``."""
    width, whole = len(matrix), matrix.square().sum()

    def enough(squares: Tensor) -> int:
        left_out = 1 - squares.cumsum(0) / whole
        return min(most, 1 + int((left_out > tolerance).sum())) if whole > 0 else 1

    values: Tensor
    found: Tensor
    sought = 256
    while tolerance > 0 and width > SKETCHED and sought <= width // 4:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # and not the devices', which are the host's
            _, values, found = torch.svd_lowrank(matrix, sought, niter=1)
        needed = enough(values.square())
        if needed < sought:
            return found[:, :needed]
        sought *= 2
    values, found = torch.linalg.eigh(matrix.T @ matrix)
    return found.flip(1)[:, : enough(values.flip(0).clamp_min(0))]


def vectors(model: LoadedModel, concept: Concept, settings: ClosedFormSettings) -> tuple[Tensor, Tensor, Tensor]:
    """C, A and R of the module's docstring, R with its weight.

    Raises:
        ModelError: the text encoder gives no finite numbers.
    """
    sayings = concept.sayings(settings.contexts, partial(has_room, model))
    said, other = [saying.prompt for saying in sayings], [saying.instead for saying in sayings]
    subject, instead = subject_rows(encode_each(model, said), encode_each(model, other), partings(model, said, other))
    keep = dict.fromkeys([*concept.kept_prompts, *(saying.without for saying in sayings)])
    kept = kept_rows(encoded_pieces(model, list(keep))) * settings.keep_weight**0.5
    if not all(bool(rows.sum().isfinite()) for rows in (subject, instead, kept)):
        check_model(model)
        raise ModelError(
            "The text encoder gives no finite numbers. Either its weights hold numbers that are too large or none, or "
            "its format is too narrow for them: load the model anew, or in float32."
        )
    return subject, instead, kept


def edited_layers(model: LoadedModel, settings: ClosedFormSettings) -> dict[str, nn.Module]:
    """Those of the chosen layers that read the prompt, by canonical name.

    Raises:
        InvalidSettings: none of them does.
    """
    layers = {name: layer for name, layer in select(model.layers(), settings.layers).items() if reads_context(name)}
    if not layers:
        raise InvalidSettings("A closed form edits keys and values of cross-attention; choose layers with them.")
    return layers


def change_of(model: LoadedModel, name: str, narrow: Tensor, down: Tensor) -> LowRankDelta:
    """W X of the module's docstring for one layer, on the CPU. The system that gives X needs float64, this product does
    not.

    Args:
        model, name: the layer, with its weight W [O, D].
        narrow: up of X, as ``solved_change`` gives it, in float32 where the model computes.
        down: down of X.
    """
    weight = model.weight(name).to(model.device, torch.float32)
    return LowRankDelta(down.float(), (weight @ narrow).cpu())


@solver(
    "closed_form",
    "Closed form (instant erase)",
    "Gandikota et al. 2024, Unified Concept Editing in Diffusion Models, arXiv 2308.14761, eq. 7",
    "reimplementation, of the least rank within a tolerance; exact at tolerance 0",
    ClosedFormSettings,
    check=edited_layers,
)
@torch.no_grad()
def closed_form(model: LoadedModel, concept: Concept, settings: ClosedFormSettings, progress: Progress) -> DeltaSet:
    """The change of every layer that reads the prompt.

    Raises:
        Cancelled: the user stopped.
        InvalidSettings: none of the chosen layers reads the prompt.
        ModelError: the text encoder gives no finite numbers.
    """
    layers = edited_layers(model, settings)
    subject, instead, kept = vectors(model, concept, settings)
    up, down = solved_change(subject, instead, kept, settings.damping, settings.rank, settings.tolerance)
    narrow = up.to(model.device, torch.float32)
    deltas = {}
    for step, name in enumerate(layers):
        if progress.cancelled():
            raise Cancelled("Stopped while solving.")
        deltas[name] = change_of(model, name, narrow, down)
        progress.update(Report("solving", step + 1, len(layers)))
    return DeltaSet(deltas)
