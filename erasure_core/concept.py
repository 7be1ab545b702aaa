"""What a user wants erased, what may take its place, and what must stay."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm
from typing import TypeVar

from .errors import InvalidConcept
from .everyday import everyday_words

Item = TypeVar("Item")

MAX_LENGTH = 300
"""Longest phrase in characters; a text encoder of 77 tokens reads about this much English."""

MAX_TOTAL = 500_000
"""Characters of all phrases together, as JSON: an erasure's manifest must hold them."""

MAX_WORDS = 2000
"""Words and phrases of one concept: each is said in many prompts."""

TEMPLATES = ("{}", "a {}", "the {}", "a photo of a {}", "a picture of the {}")
"""How a concept's words are put into prompts, so that the erasure does not hang on the bare word.

All end with the word: the closed form edits the token vectors from the last one of the concept onwards.
"""
_OF_NAMES = ("{}", "by {}", "a photo of {}", "a painting by {}", "in the style of {}")
FOR_NAMES = dict(zip(TEMPLATES, _OF_NAMES, strict=True))
"""The same for names, of people and of those whose style it is: nobody asks for "a photo of a Van Gogh"."""
BY = ("by", "in the style of", "and")
"""How a name is said behind a prompt: whose work it is, in whose style, or who is in it too."""
ARTICLES = frozenset(["a", "an", "the"])
SMALL_WORDS = frozenset(["and", "da", "de", "del", "der", "di", "du", "la", "of", "the", "van", "von", "y"])
"""Parts of names that are often written small."""
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI")
"""Scripts that put no spaces between words, or join to them what others write apart."""


@dataclass(frozen=True)
class Saying:
    """A prompt that says the concept.

    Args:
        word: the place of the word it says in ``Concept.words``.
        prompt: the prompt.
        instead: the same with the alternative in the word's place, or with nothing.
        without: what is asked for beside the concept: the prompt without it, empty for the word alone.
    """

    word: int
    prompt: str
    instead: str
    without: str


IN_PLACE, BEFORE, BESIDE = range(3)
"""Where a word is said in a kept prompt: in the place of its last word, before that, or as a thing of its own."""


@dataclass(frozen=True)
class Frame:
    """A prompt with room for a word.

    Args:
        before, after: what stands on both sides of the word.
        without: the prompt that says nothing there.
    """

    before: str = ""
    after: str = ""
    without: str = ""

    def say(self, word: str) -> str:
        """The prompt with a word in it; without one what is said beside it."""
        return " ".join(part for part in (self.before, word, self.after) if part) if word else self.without


def frame(kept: str, where: int, first: bool = False, word: str = "", instead: str = "") -> Frame:
    """Room for a word in a kept prompt.

    Args:
        kept: the prompt.
        where: ``IN_PLACE``, ``BEFORE`` or ``BESIDE``.
        first: beside: the word comes first.
        word: what the room is for, if known. A name stands behind the prompt in one of the ways of ``BY``.
        instead: what takes its place. Where the prompt says that before other words, the room is there, as in "a dotted
            red tree" for red and purple: in "a dotted purple red tree" the rest of the prompt speaks against the word.
    """
    if is_name(word):
        return Frame(f"{kept} {BY[where]}", "", kept)
    before, _, after = (part.strip() for part in f" {kept} ".partition(f" {instead} "))
    if instead and after:
        return Frame(before, after, f"{before} {after}".strip())
    if where == BESIDE:
        return Frame("a", f"next to {kept}", kept) if first else Frame(f"{kept} and a", "", kept)
    *head, last = kept.split(" ")
    behind = last if where == BEFORE or not head else ""
    return Frame(" ".join(head), behind, kept if behind else " ".join(head))


def among(fillers: Sequence[str], turn: int) -> Callable[[str], str]:
    """Puts a prompt among other words: none, some behind it, some before it, in turn; without fillers none at all."""
    if not fillers:
        return lambda prompt: prompt
    first, second = (fillers[(5 * turn + place) % len(fillers)] for place in (0, 1))
    form = ("{}", "{}, " + f"{first} and {second}", f"{first} {second}, " + "{}")[turn // 3 % 3]
    return lambda prompt: form.replace("{}", prompt)


@lru_cache(maxsize=4096)
def _spellings(words: tuple[str, ...]) -> tuple[dict[str, str], tuple[tuple[re.Pattern[str], str], ...]]:
    """How some words may stand in a prompt: single words and their plurals each with its word, which a prompt's own
    words are looked up in, and patterns for what is no single word."""
    single: dict[str, str] = {}
    others = []
    for word in words:
        said = word.casefold()
        if is_unspaced(said):
            others.append((re.compile(re.escape(said)), word))
        elif re.fullmatch(r"\w+", said):
            for form in _forms(said):
                single.setdefault(form, word)
        else:
            forms = "|".join(map(re.escape, _forms(said)))
            others.append((re.compile(rf"(?<!\w)(?:{forms})(?!\w)"), word))
    return single, tuple(others)


def _forms(word: str) -> tuple[str, ...]:
    """A word and its plurals: "ball", "balls"; "box", "boxes"; "butterfly", "butterflies"."""
    return (word, f"{word}s", f"{word}es", *([f"{word[:-1]}ies"] if word.endswith("y") else []))


def is_unspaced(word: str) -> bool:
    """Whether a word is of a script that puts no spaces between words."""
    return any(unicodedata.name(c, "").startswith(UNSPACED) for c in word)


def said_word(prompt: str, words: tuple[str, ...]) -> str | None:
    """Which of some words or phrases a prompt says, as a whole word or its plural; upper case does not matter.

    Scripts such as Chinese have no spaces between words: there it counts anywhere.
    """
    single, others = _spellings(words)
    text = unicodedata.normalize("NFC", prompt).casefold()
    found = (single[part] for part in re.findall(r"\w+", text) if part in single)
    return next(found, None) or next((word for pattern, word in others if pattern.search(text)), None)


def says(prompt: str, word: str) -> bool:
    """Whether a prompt says a word or phrase, as ``said_word`` does."""
    return said_word(prompt, (word,)) is not None


def is_name(word: str) -> bool:
    """Whether a phrase is written as a name: of several words, the telling ones with capital letters. One word alone
    may be any thing at the beginning of a line."""
    words = word.split()
    telling = [part for part in words if part not in SMALL_WORDS]
    return len(words) > 1 and bool(telling) and all(part[0].isupper() for part in telling)


def worded(template: str, word: str, instead: str | None = None) -> str:
    """A template with a word in it, or with what stands ``instead`` of the word; for a name that of ``FOR_NAMES``. A
    phrase that brings its own article needs none of the template's."""
    chosen = FOR_NAMES.get(template, template) if is_name(word) else template
    said = word if instead is None else instead
    if said.split(" ", 1)[0].casefold() in ARTICLES and " " in said:
        chosen = chosen.replace("a {}", "{}").replace("the {}", "{}")
    return chosen.format(said).strip()


def _checked(phrase: str, what: str) -> str:
    # One letter with its accent or two: text encoders read the same, comparisons would not.
    text = " ".join(unicodedata.normalize("NFC", phrase).split())
    if len(text) > MAX_LENGTH:
        raise InvalidConcept(
            f"The {what} is {len(text)} characters long; at most {MAX_LENGTH} are allowed. Shorten it."
        )
    if any(not c.isprintable() for c in text):
        raise InvalidConcept(f"The {what} {text!r} holds control characters; remove them.")
    return text


def apart_from(words: Sequence[str], prompts: Sequence[str]) -> tuple[str, ...]:
    """Those prompts that are not just one of some words in a template: they can be kept where the words are erased."""
    erased = {worded(template, word).casefold() for word in words for template in TEMPLATES}
    return tuple(prompt for prompt in prompts if prompt.casefold() not in erased)


def without_concept(prompts: Sequence[str], concept: Concept) -> tuple[str, ...]:
    """Those prompts that do not say the concept."""
    return tuple(prompt for prompt in prompts if said_word(prompt, concept.words) is None)


def without_contradictions(concept: Concept) -> Concept:
    """A concept without the prompts to keep that say what is erased: a training would be asked for both and do neither.

    Only erasing leaves them out: a file's own description may hold such prompts and is read as it is.
    """
    kept = without_concept(concept.keep, concept)
    return concept if len(kept) == len(concept.keep) else replace(concept, keep=kept)


def check_alternatives(concept: Concept) -> None:
    """Only erasing asks for this: a file's own description may say so and is read as it is.

    Raises:
        InvalidConcept: an alternative says what is erased, so that the concept would be painted in its own place.
    """
    own = dict(concept.instead)
    for word in concept.words:
        chosen = own.get(word, concept.alternative)
        if chosen and (erased := said_word(chosen, concept.words)):
            raise InvalidConcept(f"The alternative {chosen!r} still says {erased!r}, which is erased; choose another.")


def check_words(concept: Concept) -> None:
    """Whether each word names something.

    Raises:
        InvalidConcept: a word is an article, which nearly every prompt says.
    """
    for word in concept.words:
        if word.casefold() in ARTICLES:
            raise InvalidConcept(f"Nearly every prompt says {word!r}; name what it is that you mean.")


def left_out(concept: Concept) -> str:
    """A sentence on the prompts that ``without_contradictions`` leaves out, for people; empty where there are none."""
    found = [(prompt, word) for prompt in concept.keep if (word := said_word(prompt, concept.words))]
    if not found:
        return ""
    prompt, word = found[0]
    others = len(found) - 1
    more = f", and {others} more like it" if others else ""
    return f"Not kept: {prompt!r}, as it says {word!r}, which is erased{more}. To keep that, say it without the word."


def _unique(items: tuple[Item, ...]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys(items))


@dataclass(frozen=True)
class Concept:
    """A concept to erase.

    Args:
        words: one or more ways to say the concept; each is erased.
        alternative: what the model paints instead; ``None`` leaves the choice to the method.
        keep: prompts whose pictures must not change. The empty prompt is always among them (see ``kept_prompts``).
        instead: pairs (word, its own alternative), where several concepts are erased at once.
        neighbours: what a method keeps besides, because it is near to what the user named.
        groups: the words of each concept, where several are erased at once.
        found: those of the words that a method or a search added to the user's.

    Raises:
        InvalidConcept: no word, an empty one, or more than ``MAX_WORDS``; a phrase that is too long or holds control
            characters; more than ``MAX_TOTAL`` characters in all; a kept prompt that is one of the words; an
            alternative that is one of them, or that is for something else.
    """

    words: tuple[str, ...]
    alternative: str | None = None
    keep: tuple[str, ...] = ()
    instead: tuple[tuple[str, str], ...] = ()
    neighbours: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    found: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        words = _unique(tuple(_checked(word, "concept") for word in self.words))
        keep = _unique(tuple(_checked(prompt, "kept prompt") for prompt in self.keep if prompt.strip()))
        if not words or not all(words):
            raise InvalidConcept("The concept is empty; give at least one word or phrase to erase.")
        if len(words) > MAX_WORDS:
            raise InvalidConcept(f"{len(words)} words and phrases to erase; at most {MAX_WORDS} fit in one run.")
        alternative = None if self.alternative is None else _checked(self.alternative, "alternative")
        instead = _unique(tuple((_checked(w, "concept"), _checked(a, "alternative")) for w, a in self.instead))
        _check_instead(words, alternative, instead)
        own = {word.casefold(): other for word, other in instead}  # for every spelling: text encoders see no upper case
        instead = tuple((word, own[word.casefold()]) for word in words if word.casefold() in own)
        neighbours = _unique(tuple(_checked(prompt, "kept prompt") for prompt in self.neighbours))
        apart = apart_from(words, keep)
        clash = [prompt for prompt in keep if prompt not in apart]
        if clash:
            raise InvalidConcept(f"{clash[0]!r} is both erased and kept; remove it from one of the two.")
        length = len(json.dumps([words, keep, instead, neighbours]))
        if length > MAX_TOTAL:
            raise InvalidConcept(
                f"Concept and kept prompts are {length} characters long in all; at most {MAX_TOTAL} fit. Give fewer."
            )
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "alternative", alternative)
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "instead", instead)
        object.__setattr__(self, "neighbours", neighbours)
        object.__setattr__(self, "groups", self._apart(words))
        object.__setattr__(self, "found", tuple(word for word in words if word in self.found))

    def _apart(self, words: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The groups with every word in the first one that names it; none where that leaves less than two."""
        first: dict[str, int] = {}
        for i, group in enumerate(self.groups):
            for word in group:
                first.setdefault(word, i)
        groups = (tuple(word for word in words if first.get(word) == i) for i in range(len(self.groups)))
        found = tuple(group for group in groups if group)
        return found if len(found) > 1 else ()

    @classmethod
    def joined(cls, concepts: Sequence[Concept]) -> Concept:
        """Several concepts as one that is erased in one run, each with its own alternative.

        Raises:
            InvalidConcept: as ``Concept``, or one word is to have two alternatives.
        """
        pairs = tuple((w, c.alternative) for c in concepts for w in c.words if c.alternative is not None)
        own = tuple(pair for c in concepts for pair in c.instead)
        chosen: dict[str, str] = {}
        for word, other in [*pairs, *own]:
            if chosen.setdefault(word.casefold(), other) != other:
                raise InvalidConcept(f"{word!r} has two alternatives, {chosen[word.casefold()]!r} and {other!r}.")
        words = tuple(word for c in concepts for word in c.words)
        keep = apart_from(words, [prompt for c in concepts for prompt in c.keep])
        instead = tuple(dict([*pairs, *own]).items())
        named = {word for c in concepts for word in c.named}
        found = tuple(word for word in words if word not in named)
        return cls(words, None, keep, instead, groups=tuple(group for c in concepts for group in c.each), found=found)

    @property
    def each(self) -> tuple[tuple[str, ...], ...]:
        """The words of each concept: one, or several that are erased at once."""
        return self.groups or (self.words,)

    @property
    def named(self) -> tuple[str, ...]:
        """The words that the user gave; all, where it is not known which those are."""
        return tuple(word for word in self.words if word not in self.found) or self.words

    @property
    def has_alternative(self) -> bool:
        """Whether anything is painted in the place of any word."""
        return self.alternative is not None or bool(self.instead)

    def unanswered(self) -> tuple[tuple[str, ...], ...]:
        """The words of each concept in whose place nothing is painted yet."""
        own = dict(self.instead)
        without = [tuple(word for word in words if word not in own) for words in self.each]
        return () if self.alternative is not None else tuple(words for words in without if words)

    def grown(self, found: Sequence[tuple[str, str]]) -> Concept:
        """The concept with more words, each with the word that it is another name of: what holds for that, holds for
        it."""
        own = dict(self.instead)
        more = tuple((word, own[of]) for word, of in found if of in own)
        groups = tuple((*words, *(word for word, of in found if of in words)) for words in self.groups)
        added = tuple(word for word, _ in found if word not in self.words)
        return replace(
            self,
            words=(*self.words, *added),
            instead=(*self.instead, *more),
            groups=groups,
            found=(*self.found, *added),
        )

    @property
    def name(self) -> str:
        """The first word, by which the concept is listed."""
        return self.words[0]

    @property
    def kept_prompts(self) -> tuple[str, ...]:
        """The prompts to keep, the empty one first: every sampler uses it for guidance."""
        return _unique(("", *self.keep, *self.neighbours))

    def spares(self, word: str) -> bool:
        """Whether a prompt to keep or an alternative says a word: erasing it would break what the user asked for."""
        return any(says(prompt, word) for prompt in (*self.keep, *self.alternatives()))

    def alternatives(self) -> tuple[str, ...]:
        """All that is painted in the place of any word; an empty one stands for nothing."""
        return (*([] if self.alternative is None else [self.alternative]), *(other for _, other in self.instead))

    def _fillers(self) -> list[str]:
        """Everyday words that have nothing to do with what is erased or takes its place."""
        said = " ".join([*self.words, *self.alternatives()]).casefold().split()
        return [word for word in everyday_words() if not set(word.casefold().split()) & set(said)]

    def sayings(self, contexts: int = 0, fits: Callable[[str], bool] = lambda prompt: True) -> tuple[Saying, ...]:
        """The words in all templates, and up to ``contexts`` of them inside kept prompts, where a prompt ``fits``.

        A word that is erased in templates alone comes back among other words: "ball" is gone, "a red ball" is not. And
        only where much of the prompt stays does the training tell the concept from the rest of its prompt. Two of three
        of these prompts have everyday words around them, as prompts of users have.
        """
        own = dict(self.instead)
        fillers = self._fillers()
        plain = [
            Saying(place, worded(template, word), worded(template, word, own.get(word, self.alternative or "")), "")
            for place, word in enumerate(self.words)
            for template in TEMPLATES
        ]
        # The bare word stays in any case: where even that is too long the user has to be told.
        said = [one for one in plain if one.prompt == self.words[one.word] or (fits(one.prompt) and fits(one.instead))]
        kept = self.kept_prompts
        keep = [prompt for prompt in kept if prompt]
        met: Counter[tuple[int, int]] = Counter()
        for i in range(contexts if keep else 0):
            turn, which = divmod(i, len(keep))
            # Every word has its turn, and after as many as both lists have in common meets other prompts than before.
            place = (i + i // lcm(len(keep), len(self.words))) % len(self.words)
            where = (which + place + met[which, place]) % 3
            met[which, place] += 1
            word, instead = self.words[place], own.get(self.words[place], self.alternative or "")
            room = frame(keep[which], where, bool(turn % 2), word, instead)
            around = among(fillers, i)
            inside = Saying(place, *map(around, (room.say(word), room.say(instead), room.without)))
            if fits(inside.prompt) and fits(inside.instead):
                said.append(inside)
        by_prompt: dict[str, Saying] = {}
        for saying in said:
            if saying.prompt not in kept:
                by_prompt.setdefault(saying.prompt, saying)
        return tuple(by_prompt.values())


def _check_instead(words: tuple[str, ...], alternative: str | None, instead: tuple[tuple[str, str], ...]) -> None:
    """Text encoders do not see upper case, so neither does this."""
    erased = {word.casefold() for word in words}
    for chosen in ([alternative] if alternative is not None else []) + [pair[1] for pair in instead]:
        if chosen.casefold() in erased:
            raise InvalidConcept(f"The alternative {chosen!r} is also the concept to erase; choose another.")
    foreign = [word for word, _ in instead if word.casefold() not in erased]
    if foreign:
        raise InvalidConcept(f"{foreign[0]!r} has an alternative but is not erased; erase it too, or leave that out.")
