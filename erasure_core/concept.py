"""What a user wants erased, what may take its place, and what must stay."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .errors import InvalidConcept

MAX_LENGTH = 300
"""Longest phrase in characters; a text encoder of 77 tokens reads about this much English."""

MAX_TOTAL = 500_000
"""Characters of all phrases together, as JSON: an erasure's manifest must hold them."""

TEMPLATES = ("{}", "a {}", "the {}", "a photo of a {}", "a picture of the {}")
"""How a concept's words are put into prompts, so that the erasure does not hang on the bare word.

All end with the word: the closed form edits the token vectors from the last one of the concept onwards.
"""


def _checked(phrase: str, what: str) -> str:
    text = " ".join(phrase.split())
    if len(text) > MAX_LENGTH:
        raise InvalidConcept(
            f"The {what} is {len(text)} characters long; at most {MAX_LENGTH} are allowed. Shorten it."
        )
    if any(not c.isprintable() for c in text):
        raise InvalidConcept(f"The {what} {text!r} holds control characters; remove them.")
    return text


def _unique(phrases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(phrases))


@dataclass(frozen=True)
class Concept:
    """A concept to erase.

    Args:
        words: one or more ways to say the concept; each is erased.
        alternative: what the model paints instead; ``None`` leaves the choice to the method.
        keep: prompts whose pictures must not change. The empty prompt is always among them (see ``kept_prompts``).

    Raises:
        InvalidConcept: no word, an empty or overlong phrase, or a kept prompt that is one of the words.
    """

    words: tuple[str, ...]
    alternative: str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        words = _unique(tuple(_checked(word, "concept") for word in self.words))
        keep = _unique(tuple(_checked(prompt, "kept prompt") for prompt in self.keep))
        if not words or not all(words):
            raise InvalidConcept("The concept is empty; give at least one word or phrase to erase.")
        alternative = None if self.alternative is None else _checked(self.alternative, "alternative")
        # Text encoders do not see upper case.
        if alternative is not None and alternative.casefold() in {word.casefold() for word in words}:
            raise InvalidConcept(f"The alternative {alternative!r} is also the concept to erase; choose another.")
        erased = {template.format(word).casefold() for word in words for template in TEMPLATES}
        clash = [prompt for prompt in keep if prompt.casefold() in erased]
        if clash:
            raise InvalidConcept(f"{clash[0]!r} is both erased and kept; remove it from one of the two.")
        length = len(json.dumps([words, keep]))
        if length > MAX_TOTAL:
            raise InvalidConcept(
                f"Concept and kept prompts are {length} characters long in all; at most {MAX_TOTAL} fit. Give fewer."
            )
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "alternative", alternative)
        object.__setattr__(self, "keep", keep)

    @property
    def name(self) -> str:
        """The first word, by which the concept is listed."""
        return self.words[0]

    @property
    def kept_prompts(self) -> tuple[str, ...]:
        """The prompts to keep, the empty one first: every sampler uses it for guidance."""
        return _unique(("", *self.keep))

    def prompts(self) -> tuple[tuple[str, str], ...]:
        """Pairs (prompt that says the concept, the same prompt with the alternative or with nothing in its place)."""
        instead = self.alternative or ""
        return tuple(
            (template.format(word), template.format(instead).strip()) for word in self.words for template in TEMPLATES
        )
