"""How people write a word so that a list does not find it: other spellings of a text, for the guard to look through."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

WORDS = Path(__file__).with_name("guard_words.json")
STARS = "*#%"
"""Signs that stand for one letter inside a word: "n*de"."""
SIGNS = re.compile(r"[!|$@€]")
"""Signs that stand for a letter or between letters: "k!d", "n|u|d|e", "nude!"."""
LETTERS_IN_SIGNS = (0x1F130, 0x1F150, 0x1F170, 0x1F1E6)
"""Where the alphabets of letters in squares and circles, and of flags, begin."""
MOST_PIECES, LONGEST_PIECE = 6, 4
"""Of a word that is broken up: "nu.de", "ch ild"."""
SMALL_WORDS = {
    "a", "am", "an", "as", "at", "be", "by", "de", "do", "el", "en", "go", "he", "i", "if", "in", "is", "it", "la",
    "le", "me", "my", "no", "of", "on", "or", "so", "to", "un", "up", "us", "we",
}  # fmt: skip
"""Words of two letters that are no pieces of others: "men or women" names no Spanish minor."""


@cache
def word_lists(kind: str) -> dict[str, list[str]]:
    """The entries of a kind, for each language."""
    lists: dict[str, list[str]] = json.loads(WORDS.read_text(encoding="utf-8")).get(kind, {})
    return lists


@cache
def _letters() -> dict[int, str]:
    """What people write in the place of a letter: digits, signs, Cyrillic and Greek letters of the same look."""
    in_signs = {first + i: chr(ord("a") + i) for first in LETTERS_IN_SIGNS for i in range(26)}
    return in_signs | {ord(pair[0]): pair[1] for pairs in word_lists("letters").values() for pair in pairs}


def without_accents(text: str) -> str:
    """Text with accents, letter case and invisible characters undone; digits stay digits."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Cf"))


def unstyled(text: str) -> str:
    """As ``without_accents``, with look-alike letters undone, too."""
    return without_accents(text).translate(_letters())


def plain(text: str) -> str:
    """As ``unstyled``, with stretched letters undone, too."""
    return re.sub(r"([^\W\d])\1{2,}", r"\1", unstyled(text))


def squeezed(text: str) -> str:
    """As ``plain``, with doubled letters single: "nuude", "girrl"."""
    return re.sub(r"([^\W\d])\1+", r"\1", plain(text))


def spellings(text: str) -> set[str]:
    """What a text may mean: a digit one for the letter l, digits and signs beside a word for none of its letters, v for
    u ("nude12", "nude!", "nvde")."""
    apart = re.sub(r"(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])", " ", text)
    return {text, text.replace("1", "l"), apart, SIGNS.sub(" ", text), without_accents(text).replace("v", "u")}


def spelled_out(text: str) -> list[str]:
    """Runs of single letters with separators between them, joined: "n u d e", "n.u.d.e", "n_u_d_e", "n|u|d|e"."""
    runs = (
        run
        for spelling in {plain(text), plain(SIGNS.sub(" ", text))}
        for run in re.findall(r"(?<![^\W_])(?:[^\W_][\W_]+){2,}[^\W_](?![^\W_])", spelling)
    )
    return [re.sub(r"[\W_]", "", run) for run in runs]


def put_together(text: str) -> Iterator[str]:
    """Neighbouring pieces of a text joined, where one of them is no word: "nu de", "ch.ild"."""
    pieces = re.findall(r"[^\W_]+", plain(text))
    for first, piece in enumerate(pieces):
        joined, is_odd = piece, _is_odd(piece)
        for other in pieces[first + 1 : first + MOST_PIECES]:
            if max(len(piece), len(other)) > LONGEST_PIECE:
                break
            joined, is_odd = joined + other, is_odd or _is_odd(other)
            if is_odd:
                yield joined


def _is_odd(piece: str) -> bool:
    return len(piece) <= 2 and piece not in SMALL_WORDS


def masked(text: str) -> list[re.Pattern[str]]:
    """Patterns of the words in which signs stand for letters: "n*de"."""
    words = re.findall(rf"[^\W_]+(?:[{STARS}]+[^\W_]+)+", plain(text))
    return [re.compile(re.sub(rf"[{STARS}]", ".", word)) for word in words]
