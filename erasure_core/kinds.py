"""How words are used: as a colour, a pattern, a way to paint and so on, which are said of things, or as a thing.

No model is asked, for none tells it: in the place of "red" the likest word may be a house, because many houses are red.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .concept import ARTICLES, Concept, frame, is_name

WORDS_FILE = Path(__file__).parent / "data" / "describing_words.txt"
THING, STYLE, QUALITY = "thing", "style", "quality"
ENDINGS = ("ish", "ful", "less", "ous", "ed")
"""How words end that say what a thing is like; of ``SHORTEST`` letters and more, for "bed" and "fish" are things."""
SHORTEST = 6
THINGS = ("a house", "a tree", "a car", "a flower", "a bird")
"""Everyday things that words are said of."""
MOST_WORDS = 3
"""Words of a kept prompt whose last one is taken for a thing: of longer ones it may be anything."""
THINGS_SAID = 5
"""Things that each word is said of."""


@cache
def _table() -> dict[str, frozenset[str]]:
    """Each describing word with its kinds."""
    kinds: dict[str, frozenset[str]] = {}
    now: frozenset[str] = frozenset()
    for line in WORDS_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            now = frozenset(line.strip("[]").split())
        elif line and not line.startswith("#"):
            kinds[line] = kinds.get(line, frozenset()) | now
    return kinds


def kinds(phrase: str) -> frozenset[str]:
    """What a word or phrase is used as, by itself, its ending or the last of its words; what is not known is a thing.

    >>> sorted(kinds("bright red")), sorted(kinds("red ball")), sorted(kinds("gold"))
    (['colour'], ['thing'], ['colour', 'material', 'thing'])
    """
    words = phrase.casefold().split()
    words = words[1:] if len(words) > 1 and words[0] in ARTICLES else words
    text, last = " ".join(words), words[-1] if words else ""
    if last in ("style", "aesthetic") or text.startswith("in the style of"):
        return frozenset([STYLE])
    if known := _table().get(text) or _table().get(last):
        return known
    describes = len(words) == 1 and len(last) >= SHORTEST and last.endswith(ENDINGS)
    return frozenset([QUALITY if describes else THING])


def common_kinds(words: Sequence[str]) -> frozenset[str]:
    """What all words of a concept are used as; where they have nothing in common, what the first is."""
    shared = frozenset.intersection(*map(kinds, words))
    return shared or kinds(words[0])


def describes(words: Sequence[str]) -> bool:
    """Whether a concept's words are said of things, and name none themselves."""
    return THING not in common_kinds(words)


def of_kind(words: Sequence[str], most: int) -> list[str]:
    """Other words used as a concept's words are, the common ones first; none for things, which are without number."""
    own = {word.casefold() for word in words}
    wanted = common_kinds(words) - {THING}
    every = [word for word, theirs in _table().items() if theirs & wanted and word not in own]
    return every[:most] if describes(words) else []


def said_of_things(concept: Concept) -> list[tuple[str, str, str]]:
    """Each word of a concept that is used as a colour or a style is, and each name, said of things that are kept or of
    everyday ones: the word, the prompt, and the prompt without it.

    A colour alone paints anything; whether red houses are gone, only "a red house" tells.
    """
    said = []
    for words in concept.each:
        for word in words:
            if is_name(word) or describes(words):
                for number, thing in enumerate(_things(concept)):
                    room = frame(thing, number % 2 if is_name(word) else 1, word=word)
                    said.append((word, room.say(word), room.without))
    return said


def _things(concept: Concept) -> list[str]:
    """Things with an article, those of the prompts to keep first."""
    short = [prompt.split() for prompt in concept.keep if 1 < len(prompt.split()) <= MOST_WORDS]
    kept = [f"a {words[-1]}" for words in short if words[-1].isalpha() and kinds(words[-1]) == {THING}]
    every = dict.fromkeys([*kept, *THINGS])
    return [thing for thing in every if not any(word.casefold() in thing for word in concept.words)][:THINGS_SAID]
