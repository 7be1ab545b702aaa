"""The world's words are what the benchmark takes them for."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from proving_ground.captions import concept_vocabulary, filler_words
from proving_ground.lexicon import BACKGROUNDS, COLOURS, CONCEPTS, OBJECTS, STYLES
from proving_ground.tokens import token_ids


def _words(phrase: str) -> set[str]:
    return set(re.findall(r"[a-z]+", phrase.replace("{a}", " ").lower()))


def test_the_world_is_large_enough() -> None:
    assert len(OBJECTS) >= 14 and len(COLOURS) >= 6 and len(STYLES) >= 3 and len(BACKGROUNDS) >= 4
    assert len(set(filler_words())) >= 2000


@pytest.mark.parametrize("concept", CONCEPTS.values(), ids=CONCEPTS)
def test_every_concept_has_named_and_hidden_ways(concept) -> None:  # type: ignore[no-untyped-def]
    assert len(concept.named) >= 2 and len(concept.unnamed) >= 2 and len(concept.descriptions) >= 2
    assert concept.words[0] == concept.name


@pytest.mark.parametrize("concept", CONCEPTS.values(), ids=CONCEPTS)
def test_descriptions_avoid_the_words_of_their_concept(concept) -> None:  # type: ignore[no-untyped-def]
    forbidden = set(concept.words) | {word + "s" for word in concept.words}
    for description in concept.descriptions:
        assert not _words(description) & forbidden


def test_no_word_belongs_to_two_concepts() -> None:
    uses = Counter(word for concept in CONCEPTS.values() for word in concept.words)
    assert [word for word, count in uses.items() if count > 1] == []


def test_object_descriptions_take_adjectives() -> None:
    assert all("{a}" in description for concept in OBJECTS.values() for description in concept.descriptions)


def test_look_alikes_are_mutual() -> None:
    pairs = {name: concept.look_alike for name, concept in OBJECTS.items() if concept.look_alike}
    assert len(pairs) >= 8
    assert all(pairs[other] == name for name, other in pairs.items())


def test_filler_words_say_nothing_about_the_picture() -> None:
    assert not set(filler_words()) & concept_vocabulary()


def test_token_ids_are_those_of_clip() -> None:
    ids = token_ids(["a photo of a cat", ""])
    assert ids.shape == (2, 77)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids[1].tolist() == [49406] + [49407] * 76


def test_trimmed_token_ids_keep_every_prompt() -> None:
    prompts = ["a red ball", "a striped box next to a blue house on the grass"]
    full, trimmed = token_ids(prompts), token_ids(prompts, trim=True)
    assert trimmed.shape[1] < 77
    assert (full[:, : trimmed.shape[1]] == trimmed).all() and (full[:, trimmed.shape[1] :] == 49407).all()
