"""The whole vocabulary of single tokens: what no list of synonyms holds.

Every token is read by the text encoder alone, in rows of a few positions, and compared in what cross-attention reads;
the best of each comparison go on to be scored. Tokens are visited in the order of their input embedding's nearness to
the concept's, so that a search that must stop early has seen the likeliest ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..candidate import Candidate
from ..field import Field

AT_ONCE = 2048
FINALISTS = 512
"""Of each comparison: near in the original model, and read as the concept by the erased one."""
BATCH = 32
READING = 0.6
"""Share of this search's time for reading the vocabulary; the rest is for scoring the finalists."""


@torch.no_grad()
def vocabulary(field: Field) -> Iterator[list[Candidate]]:
    """Words, the likeliest first."""
    start = field.subject.budget.spent(field.subject.calls)
    reading_until = start + READING * (field.until - start)
    order = _by_embedding(field)
    read, near = [], []
    for ids in torch.split(order, AT_ONCE):
        if field.subject.stopped(reading_until):
            break
        erased, original = _compare(field, ids)
        read.append(erased)
        near.append(original)
    field.words_read = sum(map(len, read)), len(order)
    if not read:
        return
    seen = order[: sum(map(len, read))]
    yield from _finalists(field, seen, torch.cat(read), torch.cat(near))


def _by_embedding(field: Field) -> Tensor:
    """All token ids, nearest to the concept's own tokens first."""
    table = field.subject.tables[0].float()
    ids = field.vocabulary().to(table.device)
    rows = field.subject.model.tokenize(list(field.concept.words))
    own = torch.tensor(sorted({token for row in rows for token in row}), device=table.device)
    centred = F.normalize(table - table.mean(0), dim=1)
    nearness = (centred[ids] @ centred[own].T).amax(1)
    return ids[nearness.argsort(descending=True)].cpu()


def _compare(field: Field, ids: Tensor) -> tuple[Tensor, Tensor]:
    """For each token how much the erased model reads it as the concept, and how near it was in the original."""
    tokens = [Candidate("", "vocabulary", ids=(token,)) for token in ids.tolist()]
    leak = field.reading.leak(field.reading.read(tokens))
    with field.subject.original():
        similarity = field.reading.similarity(field.reading.read(tokens))
    return leak.cpu(), similarity.cpu()


def _finalists(field: Field, ids: Tensor, leak: Tensor, similarity: Tensor) -> Iterator[list[Candidate]]:
    """Words in the order of their better rank, in batches; tokens that no word of their own stands for are left out."""
    ranks = torch.stack([leak, similarity]).argsort(dim=1, descending=True).argsort(dim=1)
    best = ranks.amin(0).argsort()
    chosen = ids[best[: 2 * FINALISTS]].tolist()
    for start in range(0, len(chosen), BATCH):
        if field.over():
            return
        yield _words(field, chosen[start : start + BATCH])


def _words(field: Field, ids: list[int]) -> list[Candidate]:
    model = field.subject.model
    texts = [model.detokenize([token]) for token in ids]
    typed = model.tokenize([text or "?" for text in texts])
    whole = [t for t, token, row in zip(texts, ids, typed, strict=True) if row == [token] and not field.names(t)]
    return [Candidate(f"a {word}", "vocabulary", word) for word in whole if any(c.isalnum() for c in word)]
