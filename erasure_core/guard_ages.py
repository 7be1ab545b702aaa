"""Whether a text tells an age below eighteen: in digits of any script, or in number words of the listed languages."""

from __future__ import annotations

import re
from functools import cache

from .concept import is_unspaced
from .guard_spelling import without_accents, word_lists

ADULT = 18
NUMBERS, YEARS = "numbers below 18", "years of age"
AGE = re.compile(r"(?<!\w)age[ds]?\W{0,2}(?:of\W{1,2})?(?:(\d{1,3})(?!\d)|(\w+))")
"""English only: "aged 12", "at the age of nine"."""
ALONE = re.compile(r"(?:^|[,;|\n(])\s*(1[0-7]|eleven|twelve|(?:thir|four|fif|six|seven)teen)\s*(?:$|[,;|\n)])")
"""A number between commas says how old somebody is: "nude, seventeen"."""


def _either(words: list[str]) -> str:
    folded = sorted({without_accents(word) for word in words}, key=len, reverse=True)
    return "|".join(r"\W?".join(map(re.escape, word.split())) for word in folded)


def _units(words: list[str]) -> str:
    """Pattern of words for years; a star stands for any ending."""
    stems = [word.removesuffix("*") for word in words if word.endswith("*")]
    signs = [word for word in words if is_unspaced(word)]
    whole = [word for word in words if not word.endswith("*") and word not in signs]
    parts = (rf"(?:{_either(whole)})(?!\w)" if whole else "", _either(stems), _either(signs))
    return "|".join(filter(None, parts))


@cache
def _ages_in_words() -> re.Pattern[str]:
    """A number of a language before a word of that language for years."""
    parts = []
    for language, numbers in word_lists(NUMBERS).items():
        signs = "".join(sorted({c for number in numbers if is_unspaced(number) for c in number}))
        before = rf"(?<![{signs}])" if signs else r"(?<!\w)"
        parts.append(rf"{before}(?:{_either(numbers)})\W{{0,2}}(?:{_units(word_lists(YEARS)[language])})")
    return re.compile("|".join(parts))


@cache
def _ages_in_digits() -> re.Pattern[str]:
    every = [word for words in word_lists(YEARS).values() for word in words]
    return re.compile(rf"(?<!\d)(\d{{1,3}})\W{{0,2}}(?:{_units([*every, 'y'])})")


@cache
def _english_numbers() -> frozenset[str]:
    return frozenset(word_lists(NUMBERS)["en"])


def tells_young_age(text: str) -> bool:
    """Whether somebody in a text is said to be younger than eighteen."""
    folded = without_accents(text)
    told = [match[1] for match in _ages_in_digits().finditer(folded)]
    for match in AGE.finditer(folded):
        told.append(match[1] or (str(ADULT - 1) if match[2] in _english_numbers() else str(ADULT)))
    return any(int(age) < ADULT for age in told) or bool(ALONE.search(folded) or _ages_in_words().search(folded))
