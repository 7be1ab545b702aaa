"""Short searches among few words: what they find on random weights means nothing, that they run does."""

from __future__ import annotations

import sys

import pytest

SHORT = (
    ("survey", "LOOKED_AT", 1),
    ("doubtful_words", "STEPS", 2),
    ("boundary.searches.genetic", "GENERATIONS", 10),
    ("boundary.searches.genetic", "POPULATION", 60),
    ("boundary.searches.genetic", "SURVIVORS", 20),
    ("boundary.searches.prefix", "STEPS", 10),
    ("boundary.searches.inversion", "STEPS", 10),
    ("boundary.searches.self_check", "ROUNDS", 1),
    ("boundary.searches.self_check", "STEPS", 4),
)


def quicken(patch: pytest.MonkeyPatch, core: str = "erasure_core") -> None:
    """Shorten the searches of a core that has been imported under this name, and leave it a quarter of the everyday
    words."""
    for module, name, value in SHORT:
        patch.setattr(sys.modules[f"{core}.{module}"], name, value)
    wording = sys.modules[f"{core}.boundary.wording"]
    words = wording.everyday_words()[::4]
    patch.setattr(wording, "everyday_words", lambda: words)
