"""What cross-attention reads in a prompt: a comparison of prompts that needs no run of the diffusion network.

A prompt's token vectors x enter the picture only through the keys and values W x of the cross-attention. So prompts are
compared there, with the weights as they are: the erased model reads a prompt p as the original read the concept c where
W' E(p) is near W E0(c). With G = sum_l W_l'^T W_l / ||W_l||^2 over the layers l this costs one small product for each
prompt. It is blind to changes of other layers; then it still tells how near a prompt is in text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers import reads_context
from ..model import ENCODED_AT_ONCE, Conditioning
from .candidate import Candidate
from .subject import Subject

LAYERS = 16
"""Keys and values of so many places, evenly spread, stand for all."""
PLACES = 2
"""Vectors compared: at the end token, which sums a prompt up, and at the padding behind it."""


def end_vectors(prompts: Conditioning) -> Tensor:
    """The vectors at the end token and behind it, float32 [B, PLACES, D]."""
    device, last = prompts.context.device, prompts.context.shape[1] - 1
    places = [[min(end + place, last) for place in range(PLACES)] for end in prompts.ends]
    rows = torch.arange(len(places), device=device)[:, None]
    return prompts.context[rows, torch.tensor(places, device=device)].float()


class Reading:
    """Compares prompts by what cross-attention reads.

    Args:
        subject: the opened model.
        concept: prompts that say the concept.
        neutral: prompts that do not: their mean is the origin, since all prompts have much in common.
    """

    @torch.no_grad()
    def __init__(self, subject: Subject, concept: Sequence[str], neutral: Sequence[str]) -> None:
        self.subject = subject
        self.plain, self.cross, self.erased = _moments(subject)
        with subject.original():
            said = end_vectors(subject.encode_texts(concept))
            rest = end_vectors(subject.encode_texts(neutral))
        self.origin = rest.mean(0)
        self.erased_origin = end_vectors(subject.encode_texts(neutral)).mean(0)
        self.concept = said - self.origin
        self._floor = float(_cosine(rest - self.origin, self.concept, self.plain, self.plain, self.plain).mean())

    def similarity(self, vectors: Tensor) -> Tensor:
        """How near prompts are to the concept in the original model, [B]: 1 like it, about 0 like a neutral prompt.

        ``vectors`` are ``end_vectors`` encoded by the original model.
        """
        found = _cosine(vectors - self.origin, self.concept, self.plain, self.plain, self.plain)
        return (found - self._floor) / max(1 - self._floor, 1e-6)

    def nearest(self, vectors: Tensor) -> list[int]:
        """The place of the concept's prompt that each of B prompts is nearest to; ``vectors`` as of ``similarity``."""
        found = _cosines(vectors - self.origin, self.concept, self.plain, self.plain, self.plain)
        places: list[int] = found.argmax(-1).tolist()
        return places

    def leak(self, vectors: Tensor) -> Tensor:
        """How much the erased model reads prompts as the original reads the concept, [B], a cosine.

        ``vectors`` are ``end_vectors`` encoded by the erased model.
        """
        return _cosine(vectors - self.erased_origin, self.concept, self.cross, self.erased, self.plain)

    def distance(self, vectors: Tensor, target: Tensor) -> Tensor:
        """Squared distance between what the erased model reads in prompts and a target [PLACES, D], which is what the
        original model reads: for searches that aim at a shifted concept. Float32 [B]."""
        ours, theirs = vectors - self.erased_origin, target - self.origin
        a = torch.einsum("bpd,de,bpe->b", ours, self.erased, ours)
        b = torch.einsum("bpd,de,pe->b", ours, self.cross, theirs)
        return a - 2 * b + torch.einsum("pd,de,pe->", theirs, self.plain, theirs)

    @torch.no_grad()
    def read(self, candidates: Sequence[Candidate], short: bool = True) -> Tensor:
        """``end_vectors`` of candidates as the model, erased or original, encodes them now; [B, PLACES, D]."""
        found = []
        for i in range(0, len(candidates), ENCODED_AT_ONCE):
            piece = candidates[i : i + ENCODED_AT_ONCE]
            longest = max(map(len, self.subject.rows(piece))) + 2 + (PLACES - 1)
            whole = self.subject.length
            found.append(end_vectors(self.subject.encode(piece, min(longest, whole) if short else whole)))
        return torch.cat(found)


def _cosine(prompts: Tensor, concept: Tensor, cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosine with the nearest of the concept's prompts, [B]."""
    return _cosines(prompts, concept, cross, left, right).amax(-1)


def _cosines(prompts: Tensor, concept: Tensor, cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosine with each of the concept's prompts, mean over places; [B, C]."""
    products = torch.einsum("bpd,de,cpe->bcp", prompts, cross, concept)
    a = torch.einsum("bpd,de,bpe->bp", prompts, left, prompts).clamp_min(1e-12)
    b = torch.einsum("cpd,de,cpe->cp", concept, right, concept).clamp_min(1e-12)
    cosines: Tensor = (products / (a[:, None] * b[None]).sqrt()).mean(-1)
    return cosines


def _moments(subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """W^T W, W'^T W and W'^T W', summed over layers that read the prompt; [D, D] each."""
    names = [name for name in subject.model.layers() if reads_context(name)]
    places = sorted({name.rpartition(".")[0] for name in names})
    taken = set(places[:: max(1, len(places) // LAYERS)])
    chosen = sorted(name for name in names if name.rpartition(".")[0] in taken)
    parts = []
    for name in chosen:
        # A host may keep a weight in another place or format than it computes in.
        weight = subject.model.weight(name).to(subject.model.device, torch.float32)
        changed = weight
        for deltas in subject.sets:
            if name in deltas.deltas:
                changed = changed + deltas.strength * deltas[name].change().to(weight)
        size = weight.pow(2).sum()
        parts.append((weight.T @ weight / size, changed.T @ weight / size, changed.T @ changed / size))
    plain, cross, erased = (torch.stack(kind).sum(0) for kind in zip(*parts, strict=True))
    return plain, cross, erased
