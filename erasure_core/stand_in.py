"""What takes a concept's place where the user named nothing: the best of the words that a survey judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .concept import Concept, said_word, says
from .kinds import THING, common_kinds, describes, is_guessed, kinds
from .near_words import bare
from .survey import FAINT, KIN_WORDS, NearWord, familiar_words

STAND_IN_LIKENESS = 0.7
"""A word that steers pictures more alike than this is not put in the concept's place, if there is any other: what it
paints still shows the concept. (Measured with the closed form: ``dotted``, 0.81 alike, leaves ``striped`` in 53 % of
the pictures, ``plain``, 0.10 alike, in 3 %.)"""
SAME_THING, STANDS_OUT = 0.9, 0.15
"""A kept thing takes the place up to this likeness, where it is so much more alike than all other kept things: it is
the concept's look-alike, and would go wherever the concept goes. (Measured with ``auto`` in two other picture worlds: a
bear, 0.82 alike, in the place of a cat leaves none, and 92 % of the bears are right, as untouched; with a book in the
place, 0.66 alike, 42 %. A truck, 0.83 alike, in the place of a car leaves none. In the place of a cup, to which two
things are about as alike, it leaves 29 % of the unnamed words' pictures.)"""
STEADY = 0.4
"""A colour that steers two things less alike than this is not known to the model, however far it steers: it is
something else to each of them. (Measured in two picture worlds: of the twelve colours that the models have learnt 0.49
to 0.82, and 0.27 for one brown; of those never taught 0.05 to 0.30, such as green in the second world, or 0.43 to 0.72,
where they read it as a colour like it.)"""
KIN = 0.3
"""A word of a prompt to keep that steers pictures less alike than this is another kind of thing. Then the model's own
words are looked at too. Of words that are said of things, as colours are, how they are used tells their kind."""


def with_likest(concept: Concept, found: Sequence[NearWord]) -> Concept:
    """A concept without an alternative gets the kept word that steers pictures most alike: a picture stays whole when
    something takes the concept's place, and the likest takes it with the least change. Of colours and the like, it is
    the one that steers furthest its way. One that is too alike takes it only where it is the concept's one
    look-alike, or where all kept things are: the least alike of them. For colours and patterns there are other words.
    """
    kept = [one for one in found if one.kept and one.strength >= FAINT]
    look_alikes = _look_alikes(concept, kept)
    concept = _with_best(
        concept, kept, lambda one, like: like if one.word in look_alikes and like < SAME_THING else _likeness(one, like)
    )
    return _with_best(concept, kept, lambda one, like: -like if THING in kinds(one.word) else None)


def _look_alikes(concept: Concept, kept: Sequence[NearWord]) -> set[str]:
    """Kept things that stand out among the others by how alike they are to a concept."""
    found = set()
    for words in concept.unanswered():
        things = [(_like(concept, words, one), one.word) for one in kept if kinds(one.word)[0] == THING]
        best, *others = sorted(things, reverse=True) or [(-1.0, "")]
        if others and best[0] >= others[0][0] + STANDS_OUT:
            found.add(best[1])
    return found


def _like(concept: Concept, words: Sequence[str], one: NearWord) -> float:
    """How alike a find is to the likest of some of the concept's words."""
    places = [i for i, word in enumerate(concept.words) if word in words]
    return max((one.each[i] for i in places if i < len(one.each)), default=one.likeness)


def with_known_stand_in(concept: Concept, found: Sequence[NearWord], explicit: bool) -> Concept:
    """``with_likest`` for a user who kept nothing that may take the place: any word that was judged may, as long as the
    model does not read it as the concept. It is the one that steers furthest the concept's way: one that is hardly
    known to the model leaves a hole, and so does a colour that is not ``STEADY``. Everyday words and common colours
    come first: of what is nearest to the concept the model may paint just that. In an explicit concept's place only an
    everyday word that is kept may stand, of whatever kind: what steers pictures most alike there is explicit too. Where
    no other colour is left, or pattern, it is the kept one that is least alike, though it is too alike.
    """
    known = [one for one in found if one.strength >= FAINT and not one.belongs and one.alike < STAND_IN_LIKENESS]
    offered = [one for one in known if one.kept or not (explicit or is_guessed(one.word))]
    familiar = {word for words in concept.each for word in familiar_words(words, KIN_WORDS)}
    common = [one for one in offered if one.kept or one.word in familiar]
    for some in ([one for one in common if one.steady >= STEADY], common, offered):
        concept = _with_best(concept, some, _pull, 0.0, any_kind=explicit)
    kept = [one for one in found if one.kept and one.strength >= FAINT and not explicit]
    return _with_best(concept, kept, lambda one, like: -like)


def _likeness(one: NearWord, like: float) -> float | None:
    """Of things how alike they are, of colours and the like their pull; ``None`` for what is too alike."""
    pull = _pull(one, like)
    return like if pull is not None and kinds(one.word)[0] == THING else pull


def _pull(one: NearWord, like: float) -> float | None:
    """How far a word steers the concept's way, ``None`` where it is too alike. A colour that is alike but weak does not
    get a picture away from the concept. (Measured with ``auto`` in a second picture world: brown, 0.55 alike and 0.66
    as strong, leaves ``orange`` in 42 % of the pictures.)"""
    return like * min(one.strength, 1.0) if like < STAND_IN_LIKENESS else None


def _with_best(
    concept: Concept,
    offered: Sequence[NearWord],
    rating: Callable[[NearWord, float], float | None],
    least: float = KIN,
    any_kind: bool = False,
) -> Concept:
    """A concept without an alternative gets the word of the best rating, but none that its own phrases say, and none
    that is used otherwise: in the place of a colour a thing would leave what has none. Of several concepts that are
    erased at once each gets its own.

    Args:
        concept: the concept.
        offered: words that may take its place.
        rating: of a word and its likeness to the concept; ``None`` for one that must not.
        least: a thing must be more alike than this.
        any_kind: also words that are used otherwise.
    """
    offered = [
        one
        for one in offered
        if said_word(one.word, concept.words) is None and not any(says(word, one.word) for word in concept.words)
    ]
    last = {bare(prompt.split()[-1]) for prompt in concept.keep if prompt.split()}

    def is_thing(one: NearWord) -> bool:
        """Of a lime mushroom, lime is a colour; and a drawing is foremost a way to paint."""
        foremost, *others = kinds(one.word)
        return foremost == THING and not (others and one.kept and one.word not in last)

    chosen: list[tuple[str, str]] = []
    for words in concept.unanswered():
        wanted, is_said_of_things = common_kinds(words), describes(words)
        rated = []
        for one in offered:
            like = _like(concept, words, one)
            fits = any_kind or (is_thing(one) if wanted == {THING} else wanted & set(kinds(one.word)))
            rate = rating(one, like) if fits and (is_said_of_things or like > least) else None
            if rate is not None:
                rated.append((rate, one.word))
        if rated:
            best = max(rated, key=lambda one: one[0])[1]
            chosen += [(word, best) for word in words]
    if len(chosen) == len(concept.words) and len({best for _, best in chosen}) == 1:
        return replace(concept, alternative=chosen[0][1])
    return replace(concept, instead=(*concept.instead, *chosen)) if chosen else concept
