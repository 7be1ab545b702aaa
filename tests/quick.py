"""Short searches among few words: what they find on random weights means nothing, that they run does."""

from __future__ import annotations

import sys

import pytest

SHORT = (
    ("searches.genetic", "GENERATIONS", 10),
    ("searches.genetic", "POPULATION", 60),
    ("searches.genetic", "SURVIVORS", 20),
    ("searches.prefix", "STEPS", 10),
    ("searches.inversion", "STEPS", 10),
    ("searches.self_check", "ROUNDS", 1),
    ("searches.self_check", "STEPS", 4),
)


def quicken(patch: pytest.MonkeyPatch, core: str = "erasure_core") -> None:
    """Shorten the searches of a core that has been imported under this name, and leave it a quarter of the everyday
    words."""
    for module, name, value in SHORT:
        patch.setattr(sys.modules[f"{core}.boundary.{module}"], name, value)
    wording = sys.modules[f"{core}.boundary.wording"]
    words = wording.everyday_words()[::4]
    patch.setattr(wording, "everyday_words", lambda: words)
