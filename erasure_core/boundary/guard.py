"""What exploration refuses: searching for, or rendering, sexual content about minors.

A word list can be evaded; it is the floor, not a moderation system. It errs on the side of refusing: "girl" counts as a
minor here, because a refused search costs its user nothing but a search. Erasing such a concept is never refused.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from ..concept import Concept
from ..errors import InvalidConcept

WORDS = Path(__file__).with_name("guard_words.json")
MINORS, SEXUAL, BOTH, VIOLENT = "minors", "sexual", "both", "violent"
ADULT = 18

NUMBERS = r"one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
YEARS = (
    r"(?:years?|yrs?|y|yo|jahre?|jaehrige?|jährige?|ans?|años?|anos?|anni|lat|jaar|yaş|лет|года?)(?!\w)|[歳才岁歲살]"
)
AGE = re.compile(rf"(?<!\d)(\d{{1,3}})\W{{0,2}}(?:{YEARS})|(?<!\w)age[ds]?\W{{0,2}}(\d{{1,3}})(?!\d)")
_IN_WORDS = NUMBERS.replace(" ", "|")
AGE_IN_WORDS = re.compile(rf"\b(?:{_IN_WORDS})\W{{0,2}}(?:years?|yrs?|yo)\b|\bage[ds]?\W{{0,2}}(?:{_IN_WORDS})\b")
MIN_SQUEEZED, SAFE_TO_SQUEEZE = 4, 6
"""Characters a word needs to be looked for with doubled letters made single, and with its own doubled letters too:
else "soon" would be "son" and "butt" would be "but"."""


@cache
def _lists(kind: str) -> list[str]:
    """The entries of all languages."""
    lists: dict[str, list[str]] = json.loads(WORDS.read_text(encoding="utf-8"))[kind]
    return [word for language in lists.values() for word in language]


@cache
def _letters() -> dict[int, str]:
    """What people write in the place of a letter: digits, signs, Cyrillic and Greek letters of the same look."""
    return {ord(pair[0]): pair[1] for pair in _lists("letters")}


def plain(text: str) -> str:
    """Text with accents, letter case, invisible characters, look-alike letters and stretched letters undone."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    visible = "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Cf"))
    return re.sub(r"([^\W\d])\1{2,}", r"\1", visible.translate(_letters()))


def _squeezed(text: str) -> str:
    """As ``plain``, with doubled letters single: "nuude", "girrl"."""
    return re.sub(r"([^\W\d])\1+", r"\1", plain(text))


def _spelled_out(text: str) -> list[str]:
    """Runs of single letters with separators between them, joined: "n u d e", "n.u.d.e", "n_u_d_e"."""
    runs = re.findall(r"(?<![^\W_])(?:[^\W_][\W_]+){2,}[^\W_](?![^\W_])", text)
    return [re.sub(r"[\W_]", "", run) for run in runs]


def _is_unspaced(word: str) -> bool:
    """Whether a word is of a script that puts no spaces between words."""
    return any(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI")) for c in word)


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    parts = []
    for word in sorted(set(filter(None, words)), key=len, reverse=True):
        body = r"[\W_]*".join(re.escape(part) for part in word.split())
        parts.append(body if _is_unspaced(word) else rf"(?<![^\W_]){body}s?(?![^\W_])")
    return re.compile("|".join(parts))


@cache
def _patterns(kind: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds the words of a kind in ``plain`` text, and in ``_squeezed`` text."""
    words = _lists(kind)
    squeezed = [_squeezed(w) for w in words if len(w) >= SAFE_TO_SQUEEZE or _squeezed(w) == plain(w)]
    return _pattern(map(plain, words)), _pattern(w for w in squeezed if len(w) >= MIN_SQUEEZED or _is_unspaced(w))


def _holds(kind: str, text: str) -> bool:
    whole, squeezed = _patterns(kind)
    if any(whole.search(plain(t)) or squeezed.search(_squeezed(t)) for t in (text, text.replace("1", "l"))):
        return True
    return any(plain(word) in run for run in _spelled_out(plain(text)) for word in _lists(kind) if len(word) > 2)


def _tells_young_age(text: str) -> bool:
    folded = unicodedata.normalize("NFKC", text).casefold()
    ages = [int(number) for match in AGE.finditer(folded) for number in match.groups() if number]
    return any(age < ADULT for age in ages) or bool(AGE_IN_WORDS.search(folded))


def names_minor(text: str) -> bool:
    """Whether a text speaks of somebody under age."""
    return _holds(MINORS, text) or _holds(BOTH, text) or _tells_young_age(text)


def is_sexual(text: str) -> bool:
    """Whether a text speaks of sexual content or nudity."""
    return _holds(SEXUAL, text) or _holds(BOTH, text)


def is_forbidden(*texts: str) -> bool:
    """Whether texts that would meet in one prompt or picture combine minors with sexual content."""
    together = " , ".join(texts)
    return _holds(BOTH, together) or (names_minor(together) and is_sexual(together))


def is_explicit(concept: Concept) -> bool:
    """Whether pictures of a concept are hidden unless asked for, and blurred then."""
    return any(is_sexual(word) or _holds(VIOLENT, word) for word in concept.words)


def check(concept: Concept, prompts: Sequence[str] = ()) -> None:
    """Refuse before any search.

    Args:
        concept: what is explored. Prompts to keep are not searched with, and are not looked at.
        prompts: what the user asks to try.

    Raises:
        InvalidConcept: the concept, or a prompt together with it, combines minors with sexual content.
    """
    said = (*concept.words, concept.alternative or "")
    if is_forbidden(*said) or any(is_forbidden(*said, prompt) for prompt in prompts):
        raise InvalidConcept(
            "Exploration does not search for sexual content about minors, so it does not start. "
            "Erasing the concept without exploring it is possible."
        )


def allows(concept: Concept, text: str) -> bool:
    """Whether a found prompt may be tried and shown: none that would bring minors into a sexual concept or turn a
    concept of minors sexual."""
    return not is_forbidden(*concept.words, text)
