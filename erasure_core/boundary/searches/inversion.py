"""Level 5: concept inversion (Pham et al. 2024), a new embedding learned on the erased model by textual inversion.

Nobody can type it, but a file with it can be shared. It is the upper bound of what prompts can reach.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..candidate import Candidate
from ..field import Field

VECTORS = 1
STARTS = 3
STATES_AT_ONCE = 4
STEPS = 60
RATE = 5e-3
TEMPLATE = "a photo of a"


def inversion(field: Field) -> Iterator[list[Candidate]]:
    """The learned embeddings, at half time and at the end."""
    subject, chance = field.subject, field.chance(13)
    aim = field.aim()
    if aim is None:
        return
    before = subject.model.tokenize([TEMPLATE])[0]
    pool = field.vocabulary()
    row = [*before, *pool[torch.randint(len(pool), (VECTORS,), generator=chance)].tolist()]
    rows, ends = subject.model.token_rows([row] * STARTS)
    places = slice(1 + len(before), 1 + len(row))
    learned = [table[ids[:, places]].float() for table, ids in zip(subject.tables, rows, strict=True)]
    for vectors in learned:
        vectors += 0.1 * vectors.std() * torch.randn(vectors.shape, generator=chance).to(vectors)
        vectors.requires_grad_()
    # Adam moves each entry by the rate; embeddings of other scales move as far in proportion.
    usual = float(subject.tables[0].float().std())
    optimizer = torch.optim.Adam(learned, lr=RATE * max(usual / 0.01, 1e-3))
    for step in range(1, STEPS + 1):
        if field.over():
            break
        given = []
        for table, ids, vectors in zip(subject.tables, rows, learned, strict=True):
            whole = table[ids].float()
            given.append(torch.cat([whole[:, : places.start], vectors, whole[:, places.stop :]], dim=1))
        prompts = subject.model.encode_embeddings(given, ends)
        chosen = torch.randperm(len(aim.t), generator=chance)[:STATES_AT_ONCE].tolist()
        optimizer.zero_grad()
        aim.descend(subject, prompts, chosen)
        optimizer.step()
        if step == STEPS // 2:
            yield _candidates(learned, row, before, subject.tables)
    yield _candidates(learned, row, before, subject.tables)


def _candidates(
    learned: list[torch.Tensor], row: list[int], before: list[int], tables: list[torch.Tensor]
) -> list[Candidate]:
    found = []
    for start in range(STARTS):
        embeddings = tuple(
            torch.cat([table[torch.tensor(before, device=table.device)].float(), vectors[start].detach()])
            for table, vectors in zip(tables, learned, strict=True)
        )
        found.append(
            Candidate(f"{TEMPLATE} (embedding {start + 1})", "inversion", ids=tuple(row), embeddings=embeddings)
        )
    return found
