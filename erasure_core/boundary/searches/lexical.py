"""Level 0: what people would type. The user's own list, the concept's words in templates, misspellings of them, and the
words of the vocabulary whose tokens are nearest to theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...concept import TEMPLATES, Concept, worded
from ...kinds import SaidOfThing, said_in_scenes, said_of_things
from ...model import LoadedModel, fitting
from ...near_words import nearest_words
from ..candidate import ADDED, NAMED, Candidate
from ..field import Field
from ..scores import Scorer

MISSPELLINGS = 10
"""Of each word."""
NEAREST = 32
"""Words of the vocabulary: the scan of all of them comes later, and may have no time."""
LOOK_ALIKES = 24
"""Prompts that steer most like the concept, whose things may stand in its place; many say the same thing."""


def misspelled(word: str) -> list[str]:
    """Spellings one slip away: a letter left out, doubled, or swapped with its neighbour.

    >>> misspelled("cat")
    ['at', 'ccat', 'act', 'ct', 'caat', 'cta', 'ca', 'catt']
    """
    slips: list[str] = []
    for i in range(len(word)):
        slips += [word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:]]
        if i + 1 < len(word):
            slips.append(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    return [slip for slip in dict.fromkeys(slips) if slip.strip() and slip != word]


def of_things(model: LoadedModel, concept: Concept) -> list[Candidate]:
    """The concept's words said of things, where they are used so: "a red house"."""
    return _candidates(model, said_of_things(concept))


def _candidates(model: LoadedModel, said: Sequence[SaidOfThing]) -> list[Candidate]:
    """Those that the model has room for."""
    short = [one for one in said if len(fitting(model, [one.prompt, *one.against[:1]])) == 2]
    return [
        Candidate(
            one.prompt,
            NAMED,
            one.word,
            against=(one.against[0], *fitting(model, one.against[1:])),
            other=tuple(fitting(model, one.other)),
        )
        for one in short
    ]


def beside_others(scorer: Scorer) -> list[Candidate]:
    """The concept's words said of things, or of what is said of things: "a red house", "a striped pink cup"."""
    model, concept = scorer.subject.model, scorer.concept
    return of_things(model, concept) + _candidates(model, said_in_scenes(concept, scorer.nearest_others(LOOK_ALIKES)))


def _beside_others(field: Field) -> list[Candidate]:
    """Of these the ones in which the word makes a difference, as many as the whole budget suffices for."""
    said, probe = beside_others(field.scorer), field.scorer.probe
    # At worst all of them may leak, so that their rivals are asked for as well.
    cost = len(probe) * (3 + max((len(one.against) for one in said), default=0))
    many = field.subject.affordable(len(said), cost, shape=tuple(probe.latents.shape[1:]))
    return field.scorer.telling(said[:many])


def lexical(field: Field) -> Iterator[list[Candidate]]:
    """Batches of candidates: the user's prompts, the concept's own, its misspellings, its nearest words."""
    yield [Candidate(text, "yours") for text in field.tries]
    words = field.concept.named
    yield [Candidate(worded(template, word), NAMED, word) for word in words for template in TEMPLATES]
    yield _beside_others(field)
    yield [Candidate(worded("a {}", word), ADDED, word) for word in field.concept.words if word not in words]
    for word in words:
        slips = misspelled(word)
        spread = slips[:: max(1, len(slips) // MISSPELLINGS)][:MISSPELLINGS]
        yield [Candidate(f"a {slip}", "misspelling", slip) for slip in spread]
    nearest = nearest_words(field.subject.model, field.concept.words, NEAREST)
    near = [word for word in nearest if not field.names(word)]
    yield [Candidate(f"a {word}", "vocabulary", word) for word in near]
