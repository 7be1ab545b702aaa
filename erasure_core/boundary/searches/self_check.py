"""Level 2: SAGE's self-check, from many random templates in one batch; text encoder only.

Once as published, with the concept's tokens kept; and once with all tokens free, since with them kept it could never
find a word that nobody named. Found points are told by their nearest vocabulary tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from ...delta import DeltaSet
from ...self_check import SelfCheck, self_check
from ..candidate import Candidate
from ..field import Field
from ..subject import Subject

ROUNDS = 3
STARTS, STEPS = 8, 15


class Together(DeltaSet):
    """All erasures of a subject as one set, switched off together."""

    def __init__(self, subject: Subject) -> None:
        super().__init__({name: delta for deltas in subject.sets for name, delta in deltas.deltas.items()})
        self.subject = subject

    def off(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return self.subject.original()


def self_checks(field: Field) -> Iterator[list[Candidate]]:
    """What each round found."""
    deltas, chance = Together(field.subject), field.chance(17)
    for _ in range(ROUNDS):
        for free in (True, False):
            for word in field.concept.words:
                if field.over():
                    return
                settings = SelfCheck(starts=STARTS, steps=STEPS, free=free)
                found = self_check(field.subject.model, deltas, word, settings, chance)
                yield _candidates(field, found.words, free)


def _candidates(field: Field, texts: list[str], free: bool) -> list[Candidate]:
    rows = field.subject.model.tokenize([text or "?" for text in texts])
    return [
        Candidate(text, "self-check")
        for text, row in zip(texts, rows, strict=True)
        if text.isprintable() and text and field.subject.fits(row) and not (free and field.names(text))
    ]
