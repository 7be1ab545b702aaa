"""How a concept's words become prompts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasure_core import Concept
from erasure_core.concept import (
    FOR_NAMES,
    TEMPLATES,
    check_alternatives,
    check_words,
    is_name,
    left_out,
    said_word,
    says,
    without_contradictions,
    worded,
)
from erasure_core.errors import InvalidConcept
from erasure_core.everyday import everyday_words

WORD = st.text("abcdefgh", min_size=1, max_size=6)
PHRASE = st.lists(WORD, min_size=1, max_size=4).map(" ".join)


def test_the_concept_is_said_inside_kept_prompts() -> None:
    concept = Concept(("ball",), "star", ("a red house", "dog"))
    inside = {s.prompt: (s.instead, s.without) for s in concept.sayings(6) if s.without}
    assert inside == {
        "a red ball": ("a red star", "a red"),
        "ball dog": ("star dog", "dog"),
        "a red ball house": ("a red star house", "a red house"),
        "a ball next to dog, garden and apple": ("a star next to dog, garden and apple", "dog, garden and apple"),
        "a red house and a ball, chair and table": (
            "a red house and a star, chair and table",
            "a red house, chair and table",
        ),
        "ball dog, piano and book": ("star dog, piano and book", "dog, piano and book"),
    }


def test_words_around_a_prompt_have_nothing_to_do_with_the_concept() -> None:
    concept = Concept(("garden",), "apple", ("a red house", "dog"))
    assert not any("garden" in s.without or "apple" in s.without for s in concept.sayings(60))


def test_where_every_everyday_word_is_erased_nothing_stands_around() -> None:
    concept = Concept(everyday_words(), None, ("a zebra",))
    assert {s.without for s in concept.sayings(12) if s.without} == {"a zebra"}


def test_without_an_alternative_the_rest_of_the_prompt_is_left() -> None:
    inside = [s for s in Concept(("ball",), None, ("a red house",)).sayings(2) if s.without]
    assert [(s.prompt, s.instead) for s in inside] == [("a red ball", "a red"), ("a red ball house", "a red house")]


def test_a_colour_is_said_where_its_alternative_stood() -> None:
    """Not "a dotted purple red tree", where the rest of the prompt asks for another colour."""
    inside = [s for s in Concept(("red",), "purple", ("a dotted purple tree",)).sayings(6) if s.without]
    assert {(s.prompt.split(",")[0], s.instead.split(",")[0]) for s in inside if not s.prompt.startswith("piano")} >= {
        ("a dotted red tree", "a dotted purple tree")
    }
    assert not any("purple red" in s.prompt for s in inside)
    assert {s.without for s in inside if s.prompt == "a dotted red tree"} == {"a dotted tree"}
    last = [s for s in Concept(("ball",), "box", ("a red box",)).sayings(1) if s.without]
    assert [(s.prompt, s.without) for s in last] == [("a red ball", "a red")], "what comes last is replaced as always"
    phrase = [s for s in Concept(("red",), "deep purple", ("a deep purple tree",)).sayings(1) if s.without]
    assert [(s.prompt, s.instead) for s in phrase] == [("a red tree", "a deep purple tree")]


def test_a_name_is_said_behind_what_is_kept() -> None:
    inside = [s for s in Concept(("Ada Lovelace",), None, ("a red house",)).sayings(3) if s.without]
    assert {s.prompt for s in inside} == {
        "a red house by Ada Lovelace", "a red house in the style of Ada Lovelace", "a red house and Ada Lovelace",
    }  # fmt: skip
    assert {s.without for s in inside} == {"a red house"} == {s.instead for s in inside}


def test_several_concepts_are_told_apart() -> None:
    joined = Concept.joined([Concept(("ball", "orb"), "box"), Concept(("red",)), Concept((" red ", "star"))])
    assert joined.each == (("ball", "orb"), ("red",), ("star",)), "a word is of the first that names it"
    assert joined.unanswered() == (("red",), ("star",))
    assert Concept(("ball", "orb")).each == (("ball", "orb"),) == Concept.joined([Concept(("ball", "orb"))]).each
    assert Concept(("ball", "orb"), "box").unanswered() == ()
    grown = joined.grown([("globe", "ball"), ("scarlet", "red")])
    assert grown.words == ("ball", "orb", "red", "star", "globe", "scarlet")
    assert dict(grown.instead) == {"ball": "box", "orb": "box", "globe": "box"}, (
        "another name gets the same in its place"
    )
    assert grown.each == (("ball", "orb", "globe"), ("red", "scarlet"), ("star",))


def test_without_contexts_the_sayings_are_the_templates() -> None:
    concept = Concept(("ball", "orb"), "star", ("a red house",))
    assert [(s.prompt, s.instead) for s in concept.sayings()] == [
        ("ball", "star"),
        ("a ball", "a star"),
        ("the ball", "the star"),
        ("a photo of a ball", "a photo of a star"),
        ("a picture of the ball", "a picture of the star"),
        ("orb", "star"),
        ("a orb", "a star"),
        ("the orb", "the star"),
        ("a photo of a orb", "a photo of a star"),
        ("a picture of the orb", "a picture of the star"),
    ]
    assert {s.without for s in concept.sayings()} == {""}
    assert [s.word for s in concept.sayings()] == [0] * len(TEMPLATES) + [1] * len(TEMPLATES)


def test_names_are_said_as_names_are() -> None:
    concept = Concept(("Vincent van Gogh", "ball"), "a painter")
    said = [(s.prompt, s.instead) for s in concept.sayings()]
    assert ("in the style of Vincent van Gogh", "in the style of a painter") in said
    assert not any("a Vincent" in prompt for prompt, _ in said)
    assert len(said) == 2 * len(TEMPLATES) == 2 * len(FOR_NAMES)
    assert [is_name(word) for word in ("Ada Lovelace", "Ada lovelace", "van der", "Ball", "van Gogh")] == [
        True, False, False, False, True,
    ]  # fmt: skip
    with pytest.raises(InvalidConcept, match="both erased and kept"):
        Concept(("Ada Lovelace",), None, ("in the style of Ada Lovelace",))


def test_what_says_the_concept_cannot_be_kept() -> None:
    """A training would be asked for both. A file's description may say so: it is read all the same."""
    for kept in ("a Ball on a table", "two balls, one box"):
        concept = Concept(("orb", "ball"), None, ("a box", kept))
        assert left_out(concept).startswith(f"Not kept: '{kept}', as it says 'ball', which is erased. ")
        assert without_contradictions(concept).keep == ("a box",)
    both = Concept(("ball", "orb"), None, ("an orb and a ball", "an orb on a table"))
    assert "which is erased, and 1 more like it." in left_out(both) and not without_contradictions(both).keep
    fine = Concept(("red ball",), None, ("a red box", "a balloon", "a blue ball"))
    assert without_contradictions(fine) is fine and not left_out(fine)


def test_what_is_kept_is_not_erased() -> None:
    concept = Concept(("ball",), None, ("a red house", "a red ball"))
    assert "a red ball" not in {s.prompt for s in concept.sayings(8)}


@pytest.mark.parametrize(("words", "kept"), [(1, 8), (2, 8), (6, 8), (7, 7), (8, 8), (13, 17), (3, 9)])
def test_every_word_is_said_inside_kept_prompts_at_every_place(words: int, kept: int) -> None:
    concept = Concept(tuple(f"word{i}" for i in range(words)), None, tuple(f"colour{i} thing{i}" for i in range(kept)))
    inside = [saying for saying in concept.sayings(120) if saying.without]
    counts = [sum(saying.word == word for saying in inside) for word in range(words)]
    assert max(counts) - min(counts) <= 1
    for word in range(words):
        own = [saying.prompt for saying in inside if saying.word == word]
        places = [
            any(re.search(rf"colour\d+ word{word}(?! thing)", prompt) for prompt in own),
            any(re.search(rf"colour\d+ word{word} thing", prompt) for prompt in own),
            any(re.search(rf"a word{word}", prompt) for prompt in own),
        ]
        assert all(places), own


def test_one_letter_with_its_accent_is_two_all_the_same() -> None:
    """As names of files and texts of some systems are written."""
    assert says("a cafe\u0301 at night", "caf\u00e9") and says("a caf\u00e9 at night", "caf\u00e9")
    assert Concept(("cafe\u0301", "caf\u00e9")).words == ("caf\u00e9",)


def test_whole_words_and_their_plurals_are_said() -> None:
    assert says("a portrait of a Man", "man") and not says("a portrait of a woman", "man")
    assert says("three trees", "tree") and not says("a city street", "tree")
    assert says("two boxes", "box") and says("a box, red", "box") and not says("boxing", "box")
    assert says("a photo of van gogh's house", "van gogh") and says("一只猫在街上", "猫")


def test_an_empty_prompt_to_keep_is_none() -> None:
    assert Concept(("ball",), None, ("", " ")).keep == ()


def test_upper_case_does_not_matter_for_a_words_own_alternative() -> None:
    assert {s.instead for s in Concept(("Ball",), None, (), (("ball", "cube"),)).sayings()} >= {"cube", "a cube"}


@given(st.lists(PHRASE, min_size=1, max_size=3, unique=True), st.lists(PHRASE, max_size=5), st.integers(0, 40))
def test_every_saying_says_its_word_and_prompts_are_distinct(words: list[str], keep: list[str], contexts: int) -> None:
    erased = {template.format(word) for word in words for template in TEMPLATES}
    concept = Concept(tuple(words), None, tuple(prompt for prompt in keep if prompt not in erased))
    sayings = concept.sayings(contexts)
    assert len({s.prompt for s in sayings}) == len(sayings) <= len(TEMPLATES) * len(concept.words) + contexts
    assert not {s.prompt for s in sayings} & set(concept.keep)
    assert all(concept.words[s.word] in s.prompt and len(s.prompt) > len(s.without) for s in sayings)
    assert {s.word for s in sayings} == set(range(len(concept.words)))


def test_prompts_that_the_model_would_not_read_whole_are_not_made() -> None:
    """A long kept prompt leaves no room for the concept and other words around it; nobody wrote those prompts."""
    concept = Concept(("ball",), None, ("a red house",))
    assert len(concept.sayings(9)) > len(concept.sayings(9, lambda prompt: len(prompt) < 30)) > len(concept.sayings())
    short = Concept(("ball",), None, ("a red house",)).sayings(9, lambda prompt: len(prompt) < 8)
    assert [one.prompt for one in short] == ["ball", "a ball"]
    assert [one.prompt for one in concept.sayings(9, lambda prompt: False)] == ["ball"], "the word itself stays"


def test_a_phrase_with_an_article_gets_no_other() -> None:
    said = {s.prompt: s.instead for s in Concept(("ball",), "a painting").sayings()}
    assert said["a photo of a ball"] == "a photo of a painting" and said["the ball"] == "a painting"
    assert worded("a {}", "a") == "a a", "an article alone is a word as any other"


def test_an_alternative_is_that_of_every_spelling() -> None:
    concept = Concept(("Van Gogh", "van gogh", "ball"), None, (), (("van gogh", "a painting"),))
    assert dict(concept.instead) == {"Van Gogh": "a painting", "van gogh": "a painting"}


def test_what_is_kept_or_takes_the_place_is_spared() -> None:
    concept = Concept(("ball",), "a red box", ("a cat, asleep",), (("ball", "a cube"),))
    assert [word for word in ("box", "cat", "cube", "orb", "dog") if not concept.spares(word)] == ["orb", "dog"]


def test_only_scripts_without_spaces_say_a_word_inside_another() -> None:
    assert says("黑猫", "猫") and says("a 猫", "猫")
    assert not says("который час", "кот") and says("чёрный кот", "кот")
    assert not says("a böller", "öl")
    assert says("butterflies in a garden", "butterfly") and not says("a boy's toy", "to")


def test_of_many_words_the_one_that_is_said_is_found_at_once() -> None:
    words = (*tuple(f"word{i}" for i in range(1900)), "c++", "two words", "猫")
    concept = Concept(words, None, (*tuple(f"a picture of thing {i}" for i in range(5000)), "a word7 here"))
    assert left_out(concept).startswith("Not kept: 'a word7 here', as it says 'word7'")
    assert len(without_contradictions(concept).keep) == 5000
    assert [said_word(prompt, words) for prompt in ("my c++ code", "one of two words", "白猫", "nothing")] == [
        "c++",
        "two words",
        "猫",
        None,
    ]


@pytest.mark.parametrize("alternative", ["a ball", "red ball", "balls", "BALL games"])
def test_an_alternative_that_says_the_concept_is_refused_where_it_is_erased(alternative: str) -> None:
    concept = Concept(("ball", "orb"), alternative)  # a file may say so
    with pytest.raises(InvalidConcept, match="still says 'ball', which is erased"):
        check_alternatives(concept)
    check_alternatives(Concept(("ball",), "football"))
    check_alternatives(Concept(("Van Gogh style",), "style"))


def test_articles_are_no_concept() -> None:
    with pytest.raises(InvalidConcept, match="Nearly every prompt says 'A'"):
        check_words(Concept(("ball", "A")))
