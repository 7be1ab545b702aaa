"""What a method chose by itself, told to people: what takes a concept's place, and which words it added."""

from __future__ import annotations

from collections.abc import Sequence

from .concept import Concept
from .manifest import Manifest


def in_place(alternative: str | None, own: Sequence[Sequence[str]]) -> str:
    """What takes the concept's place: one alternative for all words, and those that words have for themselves;
    empty where nothing does."""
    words: dict[str, list[str]] = {}
    for word, other in own:
        words.setdefault(other, []).append(word)
    said = [f"{other} for {', '.join(of)}" for other, of in words.items()]
    rest = ([f"{alternative} for all others"] if said else [alternative]) if alternative else []
    return "; ".join([*said, *rest])


def chosen_words(concept: Concept, manifest: Manifest) -> str:
    """What takes the concept's place and which words were added to it, by the method where the user named none.

    Args:
        concept: what the user asked for.
        manifest: what was made of it.
    """
    place, own = in_place(manifest.alternative, manifest.instead), dict(manifest.instead)
    asked = [word for words in concept.unanswered() for word in words]
    bare = [word for word in asked if not own.get(word, manifest.alternative)]
    found = [word for word in asked if word not in bare]
    whose = "" if len(asked) == len(concept.words) else f"that of {', '.join(found)} "
    place += f" ({whose}found in the model)" if found and place else ""
    place += f"; nothing for {', '.join(bare)}" if bare and place else ""
    added = ", ".join(manifest.words[len(concept.words) :])
    said = f"in its place: {place}" if place else "nothing takes its place"
    return f"{said}; words added: {added} (to spare one, add a kept prompt that says it)" if added else said


def sentence(chosen: str) -> str:
    """The same as a sentence of its own."""
    return f"{chosen[:1].upper()}{chosen[1:]}."
