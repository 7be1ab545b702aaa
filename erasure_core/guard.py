"""What exploration refuses: searching for, or rendering, sexual content about minors.

A word list can be evaded; it is the floor, not a moderation system. It errs on the side of refusing: "girl" counts as a
minor here, because a refused search costs its user nothing but a search. Erasing such a concept is never refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache

from .concept import Concept, is_unspaced
from .errors import InvalidConcept
from .guard_ages import tells_young_age
from .guard_spelling import (
    masked,
    plain,
    put_together,
    spelled_out,
    spellings,
    squeezed,
    unstyled,
    without_accents,
    word_lists,
)

MINORS, SEXUAL, BOTH, VIOLENT = "minors", "sexual", "both", "violent"
GLUED = 3
"""Letters of the shortest word that is looked for in words run together: "nudekid"."""
NOT_GLUED = frozenset(["son"])
"""Endings of surnames: Dickson."""
MIN_SQUEEZED, SAFE_TO_SQUEEZE = 4, 6
"""Characters a word needs to be looked for with doubled letters made single, and with its own doubled letters too:
else "soon" would be "son" and "butt" would be "but"."""
PLURAL = "[sz]?"


@cache
def _lists(kind: str) -> list[str]:
    """The entries of all languages."""
    return [word for language in word_lists(kind).values() for word in language]


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    parts = []
    for word in sorted(set(filter(None, words)), key=len, reverse=True):
        body = r"[\W_]*".join(re.escape(part) for part in word.split())
        parts.append(body if is_unspaced(word) else rf"(?<![^\W_]){body}{PLURAL}(?![^\W_])")
    return re.compile("|".join(parts))


@cache
def _patterns(kind: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds the words of a kind in ``plain`` text, and in ``squeezed`` text."""
    words = _lists(kind)
    safe = [squeezed(w) for w in words if len(w) >= SAFE_TO_SQUEEZE or squeezed(w) == plain(w)]
    return _pattern(map(plain, words)), _pattern(w for w in safe if len(w) >= MIN_SQUEEZED or is_unspaced(w))


@cache
def _as_written(kind: str) -> re.Pattern[str] | None:
    """What finds the words of a kind that without their accents are harmless words of another language: with them."""
    words = _lists(f"{kind} as written")
    return _pattern(unicodedata.normalize("NFC", word) for word in words) if words else None


@cache
def _plain_words(kind: str) -> frozenset[str]:
    """The words of a kind without spaces, and their plurals, in ``plain`` letters."""
    words = {plain(word) for word in _lists(kind) if " " not in word}
    return frozenset(words | {f"{word}{plural}" for word in words if not is_unspaced(word) for plural in "sz"})


@cache
def _harmless() -> re.Pattern[str]:
    """Words of their own that are spelled like one of the lists with its doubled letters made single: "striped" is no
    "stripped". Only as they are: "stripppped" is."""
    return _pattern(_lists("other words when squeezed"))


@cache
def _adults() -> re.Pattern[str]:
    """Phrases for adults that say a word of the lists: "young woman"."""
    return _pattern(_lists("adults"))


def _holds(kind: str, text: str) -> bool:
    whole, single = _patterns(kind)
    for spelling in spellings(text):
        if whole.search(plain(spelling)) or single.search(squeezed(_harmless().sub("q", unstyled(spelling)))):
            return True
    written = _as_written(kind)
    if written is not None and written.search(unicodedata.normalize("NFC", text).casefold()):
        return True
    if any(plain(word) in run for run in spelled_out(text) for word in _lists(kind) if len(word) > 2):
        return True
    words = _plain_words(kind)
    return any(joined in words for joined in put_together(text)) or any(
        pattern.fullmatch(word) for pattern in masked(text) for word in words
    )


def _is_glued(text: str) -> bool:
    """Whether a word of a minor and a sexual one are run together: "nudekid"."""
    minors, sexual = _plain_words(MINORS) - NOT_GLUED, _plain_words(SEXUAL)
    return any(
        (word[:place] in minors and word[place:] in sexual) or (word[:place] in sexual and word[place:] in minors)
        for spelling in spellings(text)
        for word in re.findall(r"[^\W_]+", plain(spelling))
        for place in range(GLUED, len(word) - GLUED + 1)
    )


def _is_of_minors(text: str) -> bool:
    return _holds(MINORS, _adults().sub(" ", without_accents(text))) or tells_young_age(text)


def is_sexual(text: str) -> bool:
    """Whether a text speaks of sexual content or nudity."""
    return _holds(SEXUAL, text) or _holds(BOTH, text)


def is_forbidden(*texts: str) -> bool:
    """Whether texts that would meet in one prompt or picture combine minors with sexual content."""
    together = " , ".join(texts)
    return _holds(BOTH, together) or _is_glued(together) or (_is_of_minors(together) and _holds(SEXUAL, together))


def is_explicit_prompt(text: str) -> bool:
    """Whether a prompt is sexual or violent: its picture is hidden unless asked for, and blurred then."""
    return is_sexual(text) or _holds(VIOLENT, text) or _is_glued(text)


def explicit_words(concept: Concept) -> tuple[str, ...]:
    """Of a concept's words and what takes their place those that make it explicit."""
    return tuple(filter(is_explicit_prompt, _said(concept)))


def is_explicit(concept: Concept) -> bool:
    """Whether pictures of a concept are hidden unless asked for, and blurred then: a word is explicit, or all of them
    together are forbidden."""
    return bool(explicit_words(concept)) or is_forbidden(*_said(concept))


def _said(concept: Concept) -> tuple[str, ...]:
    """A concept's words and what takes their place: for the concept's name the erased model paints that."""
    others = (concept.alternative, *(other for _, other in concept.instead))
    return (*concept.words, *filter(None, others))


def check(concept: Concept, prompts: Sequence[str] = ()) -> None:
    """Refuse before any search.

    Args:
        concept: what is explored. Each prompt to keep stands for itself: erasing nudity and keeping children is what a
            platform wants. But the model is compared on pictures of the kept prompts, so none may be forbidden.
        prompts: what the user asks to try.

    Raises:
        InvalidConcept: the concept, what takes its place, a prompt to keep, or a prompt to try together with the
            concept combines minors with sexual content.
    """
    said = _said(concept)
    if is_forbidden(*said) or any(is_forbidden(*said, prompt) for prompt in prompts):
        raise InvalidConcept(
            "Exploration does not search for sexual content about minors, so it does not start. "
            "Erasing the concept without exploring it is possible."
        )
    if any(map(is_forbidden, (*concept.keep, *concept.neighbours))):
        raise InvalidConcept(
            "A prompt to keep combines minors with sexual content, and exploration would make pictures of it, so it "
            "does not start. Remove the prompt from those to keep."
        )


def allows(concept: Concept, text: str) -> bool:
    """Whether a found prompt may be tried and shown: none that would bring minors into a sexual concept or turn a
    concept of minors sexual."""
    return not is_forbidden(*_said(concept), text)
