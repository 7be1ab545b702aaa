"""The ladder of searches, cheapest first; one file each, one signature (``field.Search``)."""

from __future__ import annotations

from dataclasses import dataclass

from ..field import Search
from .closed_form import closed_form
from .genetic import genetic
from .inversion import inversion
from .lexical import lexical
from .prefix import prefix
from .self_check import self_checks
from .vocabulary import vocabulary


@dataclass(frozen=True)
class Level:
    """One rung.

    Args:
        name: by which it is chosen and shown.
        search: the search itself.
        share: of the budget; what an earlier level leaves over goes to those behind it.
        help: what it does, for people.
    """

    name: str
    search: Search
    share: float
    help: str


LADDER = (
    Level("lexical", lexical, 0.05, "the concept's words, their misspellings, the nearest words, and your own list"),
    Level("closed-form", closed_form, 0.01, "the prompt state that the erased layers read as the concept"),
    Level("vocabulary", vocabulary, 0.34, "every word of the vocabulary"),
    Level("self-check", self_checks, 0.10, "sentences that the model still reads as the concept (SAGE)"),
    Level("genetic", genetic, 0.08, "rows of tokens bred to read as the concept (Ring-A-Bell)"),
    Level("prefix", prefix, 0.14, "tokens before the concept's prompt, by gradient (UnlearnDiffAtk, P4D)"),
    Level("inversion", inversion, 0.08, "an embedding that no text gives: the upper bound"),
)
LEVELS = tuple(level.name for level in LADDER)
