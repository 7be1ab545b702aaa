"""Level 1: the adversarial embedding of RECE (Gong et al. 2024, eq. 8), in closed form.

c' = (lambda I + sum_l W_l'^T W_l')^-1 (sum_l W_l'^T W_l) c is the prompt state that the erased cross-attention reads as
the original reads the concept c. No words stand for it: it tells whether the changed layers can still reach the concept
at all, and what is nearest to it in the vocabulary is found by the scan.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...concept import worded
from ..candidate import Candidate
from ..field import Field

DAMPING = 0.01
"""lambda, as a share of the mean eigenvalue."""


@torch.no_grad()
def closed_form(field: Field) -> Iterator[list[Candidate]]:
    """One candidate for each of the concept's words."""
    reading, subject = field.reading, field.subject
    size = len(reading.erased)
    damped = reading.erased + DAMPING * reading.erased.trace() / size * torch.eye(size, device=reading.erased.device)
    found = []
    for word in field.concept.words:
        with subject.original():
            states = subject.model.encode([worded("a {}", word)]).context[0].float()
        solved = torch.linalg.solve(damped, reading.cross @ states.T).T
        ids = tuple(subject.model.tokenize([worded("a {}", word)])[0])
        found.append(Candidate(f"(states that read as “{word}”)", "closed form", ids=ids, states=solved))
    yield found
