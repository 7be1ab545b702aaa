"""Prompts of the tool's own making: everyday words that do not say the concept, and wordings that leave room for it."""

from __future__ import annotations

from collections.abc import Sequence

from ..concept import Concept, said_word, worded
from ..everyday import everyday_words
from ..model import LoadedModel, has_room


def unrelated_words(concept: Concept) -> list[str]:
    """Everyday words that do not say the concept, neither alone nor behind an article."""
    return [word for word in everyday_words() if said_word(f"a {word}", concept.words) is None]


def with_room(model: LoadedModel, templates: Sequence[str], words: Sequence[str]) -> list[str]:
    """Those templates that leave room for each of the words; the bare word where none does."""
    return [t for t in templates if all(has_room(model, worded(t, word)) for word in words)] or ["{}"]
