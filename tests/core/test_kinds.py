"""How words are used: as a colour or a style is, which are said of things, or as a thing."""

from __future__ import annotations

import pytest

from erasure_core.concept import Concept
from erasure_core.kinds import (
    THING,
    common_kinds,
    describes,
    is_other_colour,
    kinds,
    of_kind,
    said_in_scenes,
    said_of_things,
)


@pytest.mark.parametrize(
    ("phrase", "kind"),
    [
        ("red", "colour"), ("Bright Red", "colour"), ("the scarlet", "colour"), ("striped", "pattern"),
        ("wooden", "material"), ("cubist", "style"), ("Van Gogh style", "style"), ("in the style of Monet", "style"),
        ("anime style", "style"), ("colourless", "quality"), ("greenish", "colour"), ("boyish", "quality"),
        ("haunted", "quality"),
        ("ball", THING), ("red ball", THING), ("bed", THING), ("dish", THING), ("Ada Lovelace", THING),
        ("球", THING), ("", THING), ("Snow White", THING), ("James Brown", THING), ("man in black", THING),
        ("a woman in red", THING), ("goldfish", THING), ("seaweed", THING), ("riverbed", THING), ("Alfred", THING),
        ("Dark Green", "colour"), ("ribbed", "pattern"),
    ],
)  # fmt: skip
def test_a_word_is_used_as(phrase: str, kind: str) -> None:
    assert kind in kinds(phrase)
    assert describes([phrase or "x"]) == (kind != THING)


def test_words_of_two_kinds_are_told_by_the_others() -> None:
    assert kinds("emerald") == (THING, "colour") and not describes(["emerald"])
    assert common_kinds(["emerald", "green"]) == {"colour"} and describes(["emerald", "green"])
    assert common_kinds(["orange", "tangerine"]) == {"colour"}, "fruit too, but who erases an orange car means no fruit"
    assert common_kinds(["orange", "fruit"]) == common_kinds(["gold", "coin"]) == {THING}
    assert common_kinds(["watercolor"]) == {"style"} and common_kinds(["glass"]) == {THING}
    assert common_kinds(["red", "blood"]) == {"colour"}, "with nothing in common, the first says it"


def test_other_words_of_the_kind_are_offered() -> None:
    offered = of_kind(["red", "scarlet"], 12)
    assert len(offered) == 12 and {"blue", "green"} <= set(offered) and not {"red", "scarlet"} & set(offered)
    assert of_kind(["ball"], 12) == of_kind(["rose"], 12) == [], "things are without number"
    assert "silver" in of_kind(["gold"], 99)


def test_a_colour_is_said_of_what_is_kept_and_of_everyday_things() -> None:
    said = said_of_things(Concept(("red",), None, ("a blue barn", "a landscape, oil on canvas, 4k", "a big old red")))
    assert (said[0].word, said[0].prompt, said[0].against[:2]) == ("red", "a red barn", ("a barn", "a blue barn"))
    assert len(said) == 6 and [one.prompt for one in said[1:3]] == ["a red house", "a red tree"]
    assert said == said_of_things(Concept(("red",), None, ("a blue barn",))), "no chance is in it"
    assert "a blue barn" in said[0].other and "a barn" not in said[0].other
    own = said_of_things(Concept(("red", "blood", "scarlet"), "teal"))
    assert "a teal house" in own[0].against and "a teal house" not in own[0].other, "no basic colour"
    assert own[0].against[:2] == ("a house", "a teal house"), "what takes its place comes first"
    assert {one.word for one in own} == {"red", "scarlet"} and not any("scarlet" in one.against[2] for one in own)
    name = said_of_things(Concept(("Ada Lovelace",)))
    assert [one.prompt for one in name[:2]] == ["a house by Ada Lovelace", "a tree in the style of Ada Lovelace"]
    assert name[0].against == ("a house",)
    assert said_of_things(Concept(("ball", "red ball"))) == []
    both = said_of_things(Concept.joined([Concept(("ball",)), Concept(("striped",))]))
    assert {one.word for one in both} == {"striped"}


def test_a_thing_is_said_in_what_is_kept_and_in_everyday_scenes() -> None:
    """Of an erased cup, "a cup" may be gone and a striped pink one still be there."""
    said = said_in_scenes(Concept(("cup", "mug"), "key", ("a striped pink sword", "a cup on a table", "sunset")))
    assert [one.prompt for one in said[:3]] == ["a striped pink cup", "a striped pink mug", "a red cup"]
    assert said[0].against[:3] == ("a striped pink", "a striped pink key", "a striped pink sword")
    alike = ("a striped pink bucket", "a red", "a mug on a shelf")
    near = said_in_scenes(Concept(("cup", "mug"), None, ("a striped pink sword",)), alike)
    assert near[0].against[1:4] == ("a striped pink bucket", "a striped pink shelf", "a striped pink sword")
    colours = [f"a {colour} sword" for colour in ("pink", "white", "black", "brown", "grey")]
    behind = [one.prompt for one in said_in_scenes(Concept(("cup",), None, (*colours, "a pink key")))]
    assert behind[:5] == [f"a {colour} cup" for colour in ("pink", "white", "black", "brown", "grey")], "each once"
    grown = Concept(("cup", "globe"), found=("globe",))
    assert {one.word for one in said_in_scenes(grown)} == {"cup"}, "what the erasing added nobody asked for"
    assert said_in_scenes(Concept(("red",))) == said_in_scenes(Concept(("Ada Lovelace",))) == []
    assert {one.word for one in said_in_scenes(Concept.joined([Concept(("ball",)), Concept(("red",))]))} == {"ball"}


def test_one_basic_colour_is_no_word_for_another() -> None:
    """Where a model paints them alike, erasing pink took white with it."""
    assert is_other_colour("white", ["pink"]) and is_other_colour("Orange", ["red", "scarlet"])
    assert not is_other_colour("gray", ["grey"]) and not is_other_colour("red", ["scarlet"])
    assert not is_other_colour("crimson", ["red"]) and not is_other_colour("red", ["ball"])
