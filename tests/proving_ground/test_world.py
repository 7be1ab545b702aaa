"""Pictures and captions agree with the scenes they come from."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from proving_ground.captions import caption, noun_phrase
from proving_ground.lexicon import BACKGROUNDS, COLOUR_NAMES, OBJECT_NAMES, STYLE_NAMES
from proving_ground.quality_prompts import quality_prompts
from proving_ground.render import SHAPES, render
from proving_ground.scene import SIZE, Scene, Thing, phrases, sample_scene


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng) for _ in range(count)]


def _one(object_name: str = "ball", colour: str = "red", style: str = "plain") -> Scene:
    return Scene("sky", (Thing(object_name, colour, style, 0, 0, 0, 32.0, 32.0, 15.0),))


def test_the_renderer_is_deterministic() -> None:
    first, second = _scenes(20), _scenes(20)
    assert first == second
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(first, second, strict=True))


def test_pictures_have_the_stated_form() -> None:
    picture = render(_one())
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8


def test_every_object_is_drawn() -> None:
    assert set(SHAPES) == set(OBJECT_NAMES)
    empty = render(Scene("sky", ())).astype(int)
    for name in OBJECT_NAMES:
        assert (np.abs(render(_one(name)).astype(int) - empty).max(axis=2) > 30).mean() > 0.05


@pytest.mark.parametrize("field, names", [("object", OBJECT_NAMES), ("colour", COLOUR_NAMES), ("style", STYLE_NAMES)])
def test_every_name_looks_different(field: str, names: tuple[str, ...]) -> None:
    pictures = [render(Scene("sky", (dataclasses.replace(_one().things[0], **{field: n}),))) for n in names]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one.astype(int) - other.astype(int)).mean() > 1


def test_two_objects_do_not_overlap() -> None:
    pairs = [scene.things for scene in _scenes(400) if len(scene.things) == 2]
    assert 60 < len(pairs) < 140
    for left, right in pairs:
        assert left.object != right.object and right.x - left.x > left.radius + right.radius


def _noun(thing: Thing) -> str:
    """The part of an object's phrase that always stands together in a caption."""
    return phrases(thing.object)[thing.object_say].split("{a}")[-1]


def test_captions_name_every_object_from_left_to_right() -> None:
    rng = random.Random(1)
    for scene in _scenes(300):
        text = caption(scene, rng)
        places = [text.find(_noun(thing)) for thing in scene.things]
        assert -1 not in places and places == sorted(places), text


def test_captions_claim_no_other_attribute() -> None:
    rng = random.Random(2)
    for scene in _scenes(300):
        text = caption(scene, rng)
        words = set(text.replace(",", " ").split())
        for names, kind in ((COLOUR_NAMES, "colour"), (STYLE_NAMES, "style")):
            absent = set(names) - {getattr(thing, kind) for thing in scene.things}
            assert not words & {way for name in absent for way in phrases(name) if " " not in way}
        others = [way for name, ways in BACKGROUNDS.items() if name != scene.background for way in ways]
        assert not any(way in text for way in others), text


def test_noun_phrases_put_words_before_and_descriptions_behind() -> None:
    assert noun_phrase("umbrella", "red") == "a red umbrella"
    assert noun_phrase("orb", None, "with one even surface") == "an orb with one even surface"
    assert noun_phrase("the {a}thing that sails", "blue", "striped") == "the striped blue thing that sails"


def test_quality_prompts_are_balanced_and_repeatable() -> None:
    prompts = quality_prompts(1000, seed=3)
    assert prompts == quality_prompts(1000, seed=3) and len(prompts) == 1000
    singles = [prompt for prompt in prompts if len(prompt.things) == 1]
    uses = [sum(p.things[0].object.phrase == way for p in singles) for name in OBJECT_NAMES for way in phrases(name)]
    assert min(uses) >= 8 and max(uses) - min(uses) <= 1
    assert all(len({asked.object.name for asked in prompt.things}) == len(prompt.things) for prompt in prompts)
