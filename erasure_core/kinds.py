"""How words are used: as a colour, a pattern, a way to paint and so on, which are said of things, or as a thing.

No model is asked, for none tells it: in the place of "red" the likest word may be a house, because many houses are red.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .concept import ARTICLES, BEFORE, IN_PLACE, Concept, Frame, frame, is_name, said_word, without_concept
from .spread import spread

WORDS_FILE = Path(__file__).parent / "data" / "describing_words.txt"
THING, STYLE, QUALITY, PATTERN = "thing", "style", "quality", "pattern"
ENDINGS = ("ish", "ful", "less", "ous", "ed")
"""How words end that say what a thing is like; of ``SHORTEST`` letters and more, for "bed" and "fish" are things."""
WORKED = "ed"
"""What was worked on so may have got a pattern."""
SHORTEST = 6
NOUN_ENDINGS = (
    "fish",
    "dish",
    "radish",
    "rubbish",
    "eed",
    "erbed",
    "abed",
    "shed",
    "hundred",
    "handful",
    "mouthful",
    "spoonful",
)
"""How things are spelled that end like that all the same: starfish, seaweed, flowerbed."""
BASIC_COLOURS = frozenset(
    ["black", "white", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple", "grey", "gray"]
)
"""The basic colour terms of English (Berlin and Kay 1969): each is another colour, however alike a model paints two."""
SPELLINGS = {"gray": "grey"}
BEHIND = ("at", "by", "from", "in", "of", "on", "with")
"""Words before which a phrase has named what it is about: a man in black is no colour."""
THINGS = ("a house", "a tree", "a car", "a flower", "a bird")
"""Everyday things that words are said of."""
MOST_WORDS = 3
"""Words of a kept prompt whose last one is taken for a thing: of longer ones it may be anything."""
MOST_SAID = 4
"""Words of a concept that are said of things."""
RIVALS = 4
"""Other words of its kind that a word said of a thing is compared with."""
MOST_KEPT, THINGS_SAID = 3, 6
"""Kept things that each word is said of, evenly spread over all of them, and with everyday ones."""
MOST_SCENES = 12
"""Kept prompts that things are said in, evenly spread over all that differ in more than their thing: of what a closed
form leaves of a thing, much is left behind some adjectives and nothing behind others."""
SCENES = ("a red house", "a small tree", "a blue car")
"""Everyday prompts that things are said in."""
SCENE_WORDS = (3, 8)
"""Words, at least and at most, of a kept prompt that things are said in: its last one makes room."""


@cache
def _table() -> dict[str, tuple[str, ...]]:
    """Each describing word with its kinds, the foremost first."""
    kinds: dict[str, tuple[str, ...]] = {}
    now: tuple[str, ...] = ()
    for line in WORDS_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            now = tuple(line.strip("[]").split())
        elif line and not line.startswith("#"):
            kinds[line] = tuple(dict.fromkeys(kinds.get(line, ()) + now))
    return kinds


def kinds(phrase: str) -> tuple[str, ...]:
    """What a word or phrase is used as, foremost first, by itself, its ending or the last of its words; what is not
    known is a thing.

    >>> kinds("bright red"), kinds("red ball"), kinds("gold"), kinds("rose")
    (('colour',), ('thing',), ('colour', 'thing', 'material'), ('thing', 'colour'))
    >>> kinds("Snow White"), kinds("man in black"), kinds("starfish")
    (('thing',), ('thing',), ('thing',))
    """
    words = phrase.casefold().split()
    words = words[1:] if len(words) > 1 and words[0] in ARTICLES else words
    text, last = " ".join(words), words[-1] if words else ""
    if last in ("style", "aesthetic") or text.startswith("in the style of"):
        return (STYLE,)
    if known := _table().get(text):
        return known
    if is_name(phrase) and not all(word in _table() for word in words):
        return (THING,)  # Snow White is no white
    head = next((words[:i] for i, word in enumerate(words) if i and word in BEHIND), words)
    last = head[-1] if head else ""
    if known := _table().get(last):
        return known
    if len(words) == 1 and is_guessed(phrase.split()[-1]):
        return (QUALITY, PATTERN) if last.endswith(WORKED) else (QUALITY,)
    return (THING,)


def is_guessed(word: str) -> bool:
    """Whether its ending alone tells how a word is used: "quartered" may be a pattern, "expected" is nothing to see. A
    word with capital letters may be a name."""
    return (
        word.islower()
        and word not in _table()
        and len(word) >= SHORTEST
        and word.endswith(ENDINGS)
        and not word.endswith(NOUN_ENDINGS)
    )


def common_kinds(words: Sequence[str]) -> frozenset[str]:
    """What all words of a concept are used as; where they have nothing in common, what the first is. A thing is no
    colour besides, nor the other way round: what the first word is foremost decides.

    >>> [sorted(common_kinds(words)) for words in (["orange", "tangerine"], ["gold", "coin"], ["rose"])]
    [['colour'], ['thing'], ['thing']]
    """
    first = kinds(words[0])
    shared = [kind for kind in first if all(kind in kinds(word) for word in words)] or list(first)
    return frozenset([THING]) if shared[0] == THING else frozenset(shared) - {THING}


def describes(words: Sequence[str]) -> bool:
    """Whether a concept's words are said of things, rather than being things themselves."""
    return THING not in common_kinds(words)


def is_other_colour(word: str, words: Sequence[str]) -> bool:
    """Whether a word is a basic colour other than those that a concept's words are.

    >>> is_other_colour("white", ["pink"]), is_other_colour("gray", ["grey"]), is_other_colour("red", ["scarlet"])
    (True, False, False)
    """
    own = {SPELLINGS.get(one.casefold(), one.casefold()) for one in words} & BASIC_COLOURS
    said = SPELLINGS.get(word.casefold(), word.casefold())
    return bool(own) and said in BASIC_COLOURS - own


def of_kind(words: Sequence[str], most: int) -> list[str]:
    """Other words used as a concept's words are, the common ones first; none for things, which are without number."""
    if not describes(words):
        return []
    own, wanted = {word.casefold() for word in words}, common_kinds(words)
    return [word for word, theirs in _table().items() if wanted & set(theirs) and word not in own][:most]


@dataclass(frozen=True)
class SaidOfThing:
    """A prompt that says a word of a thing.

    Args:
        word: of the concept.
        prompt: "a red house".
        against: what it could say in its place, first without the word: "a house", "a blue house".
        other: those of them that say another thing, however alike a model paints the two: another basic colour.
    """

    word: str
    prompt: str
    against: tuple[str, ...]
    other: tuple[str, ...] = ()


def said_of_things(concept: Concept) -> list[SaidOfThing]:
    """The first words of each concept that are used as colours and styles are, and names, said of things that are kept
    and of everyday ones; thing by thing.

    A colour alone paints anything; whether red houses are gone, only "a red house" tells.
    """
    wanted: list[tuple[str, list[str]]] = []
    for words in concept.each:
        used = [
            word
            for word in words
            if word in concept.named
            and (is_name(word) or (describes(words) and common_kinds(words) & set(kinds(word))))
        ]
        others = [other for other in of_kind(words, len(concept.words) + RIVALS) if other not in concept.words]
        wanted += [(word, others[:RIVALS]) for word in used[:MOST_SAID]]
    said = []
    for number, thing in enumerate(_things(concept)):
        for word, others in wanted:
            room = frame(thing, number % 2 if is_name(word) else BEFORE, word=word)
            said.append(_said_in(room, concept, word, others))
    return said


def said_in_scenes(concept: Concept, alike: Sequence[str] = ()) -> list[SaidOfThing]:
    """The first words of each concept that are things, said in the place of the last word of prompts that are kept and
    of everyday ones; scene by scene.

    That "a cup" is gone says little of "a striped pink cup".

    Args:
        concept: what is said.
        alike: prompts that it could be taken for, the likest first. Their things are said in its place before others
            are: against things that look otherwise, a mushroom passes for an umbrella.
    """
    least, most = SCENE_WORDS
    kept = [prompt for prompt in without_concept(concept.keep, concept) if least <= len(prompt.split()) <= most]
    kept = [prompt for prompt in kept if prompt.split()[-1].isalpha() and kinds(prompt.split()[-1]) == (THING,)]
    rooms = {frame(prompt, IN_PLACE): prompt for prompt in kept}
    scenes = dict.fromkeys([*spread(list(rooms.values()), MOST_SCENES), *SCENES])
    things = dict.fromkeys(prompt.split()[-1] for prompt in (*alike, *kept, *THINGS))
    are_others = [thing for thing in things if kinds(thing) == (THING,) and said_word(thing, concept.words) is None]
    others = are_others[:RIVALS]
    said: list[SaidOfThing] = []
    for prompt in scenes:
        scene = frame(prompt, IN_PLACE)
        for words in concept.each:
            named = [word for word in words if word in concept.named and not is_name(word)]
            used = [] if describes(words) else named
            for word in used[:MOST_SAID]:
                said.append(_said_in(scene, concept, word, others))
    return said


def _said_in(room: Frame, concept: Concept, word: str, others: Sequence[str]) -> SaidOfThing:
    """A word in a frame, against the frame alone, what takes the word's place, and other words."""
    chosen = dict(concept.instead).get(word, concept.alternative)
    rivals = {rival: room.say(rival) for rival in [*([chosen] if chosen else []), *others]}
    other = tuple(prompt for rival, prompt in rivals.items() if is_other_colour(rival, concept.words))
    return SaidOfThing(word, room.say(word), (room.without, *rivals.values()), other)


def _things(concept: Concept) -> list[str]:
    """Things with an article, those of the prompts to keep first."""
    short = [prompt.split() for prompt in concept.keep if 1 < len(prompt.split()) <= MOST_WORDS]
    kept = [f"a {words[-1]}" for words in short if words[-1].isalpha() and kinds(words[-1]) == (THING,)]
    kept, everyday = (
        [thing for thing in dict.fromkeys(things) if said_word(thing, concept.words) is None]
        for things in (kept, THINGS)
    )
    return list(dict.fromkeys([*spread(kept, MOST_KEPT), *everyday]))[:THINGS_SAID]
