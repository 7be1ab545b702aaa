"""The self-check, the words that a model reads as a concept, RECE's search, and purifying pictures."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import CONCEPT, randomise, stopped

from erasure_core import Concept, DeltaSet, erase, erasing
from erasure_core import survey as surveying
from erasure_core.delta import new_deltas
from erasure_core.doubtful_words import EXPLAINING, NEARLY
from erasure_core.errors import InvalidSettings
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.methods import METHODS, find_method, vocabulary
from erasure_core.methods.closed_form import subject_rows
from erasure_core.methods.rece import returning
from erasure_core.near_words import MOST_ANCHORS, nearest_words, with_everyday_keep, with_neighbours, words_around
from erasure_core.progress import Silent
from erasure_core.purify import invert, purify
from erasure_core.self_check import BoundaryPoints, SelfCheck, self_check
from erasure_core.stand_in import with_known_stand_in, with_likest
from erasure_core.survey import (
    AGAIN,
    AGAIN_STATES,
    FAINT,
    GROUP,
    NearWord,
    Steering,
    Survey,
    belonging,
    everyday_survey,
    expanded,
    kept_parts,
    survey,
    without_alike,
)


def checked(model: DiffusersModel, layers: str = "text-encoder", past: torch.Tensor | None = None, **how: object):  # type: ignore[no-untyped-def]
    deltas = new_deltas(select(model.layers(), layers), 2, 0)
    randomise(deltas)
    with model.trainable(), deltas.attached(model.layers()):
        settings = SelfCheck(starts=4, **how)  # type: ignore[arg-type]
        return self_check(model, deltas, "ball", settings, torch.Generator().manual_seed(0), past)


@pytest.mark.parametrize("layers", ["text-encoder", "cross-attention-kv"])
def test_a_search_leaves_no_gradient_on_the_change_that_is_trained(pico: DiffusersModel, layers: str) -> None:
    """It would bring the concept back in the next optimiser step, and its size would stop Adam for many more."""
    deltas = new_deltas(select(pico.layers(), layers), 2, 0)
    randomise(deltas)
    with pico.trainable(), deltas.attached(pico.layers()):
        self_check(pico, deltas, "ball", SelfCheck(starts=2, steps=2), torch.Generator().manual_seed(0))
    assert all(parameter.grad is None for parameter in deltas.parameters())


@pytest.mark.parametrize("layers", ["text-encoder", "cross-attention-kv"])
def test_a_search_finds_what_the_changed_model_reads_as_the_concept(pico: DiffusersModel, layers: str) -> None:
    first, last = (checked(pico, layers, steps=steps, domain=0.0) for steps in (1, 25))
    assert last.remaining.mean() > first.remaining.mean() + 0.02


def test_a_search_stays_in_the_domain_and_away_from_past_finds(pico: DiffusersModel) -> None:
    free, bound = (checked(pico, steps=25, domain=d, margin=0.95) for d in (0.0, 5.0))
    assert bound.belonging.mean() > free.belonging.mean()
    again = checked(pico, steps=25, domain=0.0, past=free.features, diversity=5.0)

    def near(points: BoundaryPoints) -> float:
        return float(
            torch.nn.functional.cosine_similarity(points.features[:, None], free.features[None], dim=-1).mean()
        )

    assert near(again) < near(free)


def test_a_search_keeps_the_concepts_own_tokens(pico: DiffusersModel) -> None:
    points = checked(pico, steps=5)
    token = pico.tokenize(["ball"])[0][0]
    own = pico.token_tables()[0][token]
    for row in points.embeddings[0]:
        assert (row == own).all(dim=-1).any()
    assert all("ball" in words for words in points.words)
    for row in checked(pico, steps=5, free=True).embeddings[0]:
        assert not (row == own).all(dim=-1).any()


def test_a_search_asks_the_empty_prompt_once_of_each_model(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, encode = [], pico.encode

    def noted(prompts: list[str]) -> Any:
        asked.append(list(prompts))
        return encode(prompts)

    monkeypatch.setattr(pico, "encode", noted)
    checked(pico, steps=3)
    assert asked.count([""]) == 2


def test_a_search_reads_keys_of_a_network_in_16_bits(pico: DiffusersModel) -> None:
    """Hosts read text in float32, whatever the network computes in."""
    unet = deepcopy(pico.unet).to(torch.bfloat16)
    half = DiffusersModel(unet, pico.text_encoders, pico.tokenizers, pico.schedule)
    found, whole = (checked(model, "cross-attention-kv", steps=2) for model in (half, pico))
    assert found.features.dtype == torch.float32
    torch.testing.assert_close(found.belonging, whole.belonging, atol=0.05, rtol=0.0)


def test_a_search_takes_templates_that_leave_room(pico: DiffusersModel) -> None:
    tokenizer = copy(pico.tokenizers[0])
    tokenizer.model_max_length = 12
    short = DiffusersModel(pico.unet, pico.text_encoders, [tokenizer], pico.schedule)
    deltas, fills = DeltaSet({}), "z" * 10
    with short.trainable():
        settings, chance = SelfCheck(starts=8, steps=1), torch.Generator().manual_seed(0)
        found = self_check(short, deltas, ["ball", fills], settings, chance)
    assert all(end <= 11 for end in found.ends) and any(start > 1 for start, _ in found.said)
    assert found.words[1::2] == [fills] * 4


def test_a_check_of_nothing_finds_the_concept(pico: DiffusersModel) -> None:
    """With no change at all the model reads the concept's prompts as the original does."""
    deltas = DeltaSet({})
    with pico.trainable():
        found = self_check(pico, deltas, "ball", SelfCheck(starts=2, steps=1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.remaining, found.belonging)


def test_where_no_word_is_wanted_no_table_is_read(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert words_around(pico, ["ball"], 1)
    monkeypatch.setattr(pico, "token_tables", lambda: pytest.fail("it is copied whole"))
    assert words_around(pico, ["ball"], 0) == words_around(pico, [], 1) == {}


def test_nearest_words_are_whole_words_but_not_the_phrase(pico: DiffusersModel) -> None:
    words = nearest_words(pico, ["ball"], 5)
    assert len(words) == 5 == len(set(words)) and "ball" not in words
    table = pico.token_tables()[0]

    def likeness(word: str) -> float:
        ids = pico.tokenize([word, "ball"])
        assert len(ids[0]) == 1
        return float(torch.nn.functional.cosine_similarity(table[ids[0][0]], table[ids[1][0]], dim=0))

    assert [likeness(word) for word in words] == sorted((likeness(word) for word in words), reverse=True)


def test_a_survey_compares_with_the_concept_and_with_what_is_kept(pico: DiffusersModel) -> None:
    look = Survey(candidates=8, states=3, alike=-1.0, looks=0)
    every = survey(pico, Concept(("ball",)), look)
    assert [one.likeness for one in every] == sorted((one.likeness for one in every), reverse=True)
    assert any(one.belongs for one in every) and not any(one.kept for one in every)
    member = next(one for one in every if one.belongs).word
    kept = survey(pico, Concept(("ball",), None, (f"a {member}",)), look)
    assert [one.word for one in kept if one.kept] == [member] and not any(one.belongs for one in kept if one.kept)
    assert not any(one.belongs for one in survey(pico, Concept(("ball",)), replace(look, alike=1.01)))


def steering(concept: torch.Tensor, *directions: torch.Tensor) -> Steering:
    """Words that steer in the directions [N], measured by the concept's own [N]."""
    stacked = torch.stack(directions) if directions else torch.empty(0, len(concept))
    return Steering.of([f"word {i}" for i in range(len(directions))], stacked, concept[None])


def test_what_is_closer_to_a_word_outside_does_not_belong() -> None:
    """Love is like a heart, which is like neither a fish nor a carp; so the string of such words hangs on the heart."""
    concept = torch.tensor([1.0, 0.0, 0.0])
    heart, love, valentine = (torch.tensor([x, (1 - x * x) ** 0.5, 0.0]) for x in (0.3, 0.65, 0.7))
    carp = torch.tensor([0.9, 0.0, 0.43])
    nothing, settings = steering(concept), Survey(alike=0.55)
    found = belonging(steering(concept, heart, love, valentine, carp), nothing, settings)
    assert found.tolist() == [False, False, False, True]
    found = belonging(steering(concept, heart * 0.5, love, valentine, carp), nothing, settings)
    assert found.tolist() == [False, True, True, True], "a word that is hardly known takes none out"
    alone = belonging(steering(concept, valentine, carp), nothing, settings)
    assert alone.tolist() == [True, True]
    whale = steering(concept, torch.tensor([0.69, -0.4, 0.59]))
    anchored = belonging(steering(concept, valentine, carp), whale, Survey(margin=0.05))
    assert anchored.tolist() == [True, False], "a carp is hardly more like the concept than like what is kept"


def test_words_that_are_another_things_together_do_not_belong() -> None:
    """Of a coin, where no prompt to keep names books: those are more alike to each other than to the coin."""
    coin = torch.tensor([1.0, 0.0, 0.0])
    book, novel = torch.tensor([0.65, 0.76, 0.0]), torch.tensor([0.65, 0.75, 0.1])
    token, money = torch.tensor([0.99, 0.0, 0.1]), torch.tensor([0.7, 0.0, 0.71])
    judged, nothing = steering(coin, book, novel, token, money), steering(coin)
    whole = belonging(judged, nothing, Survey())
    assert whole.tolist() == [True, True, True, True]
    found = belonging(judged, nothing, Survey(group=GROUP))
    assert found.tolist() == [False, False, True, True], "one that is alike to a closer word stays"
    van = torch.tensor([0.7, 0.0, 0.71])
    lorry = torch.tensor([0.71, 0.31, 0.63])
    assert not belonging(steering(coin, van, lorry), nothing, Survey(group=GROUP)).any(), "0.9 to each other, 0.7 to it"


@pytest.mark.parametrize(("word", "group"), [("ball", GROUP), ("red", Survey().group)])
def test_words_for_a_colour_are_not_grouped(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, word: str, group: float
) -> None:
    """Of several rare words for blue each is alike to the others first."""
    looks: list[Survey] = []
    monkeypatch.setattr(surveying, "survey", lambda _, __, look, *___, **____: looks.append(look) or [])
    everyday_survey(pico, Concept((word,)), Survey(), Silent())
    assert [look.group for look in looks] == [group]


def test_a_colour_is_said_of_things_where_no_prompt_to_keep_tells(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: set[str] = set()
    encode = pico.encode
    monkeypatch.setattr(pico, "encode", lambda prompts: said.update(prompts) or encode(prompts))

    def told(word: str, *keep: str) -> set[str]:
        said.clear()
        look = Survey(candidates=1, states=1, looks=0)
        if keep:
            survey(pico, Concept((word,), None, keep), look)
        else:
            everyday_survey(pico, Concept((word,)), look, Silent())
        return {prompt for prompt in said if word in prompt.split()}

    assert told("red") == {"red", "a red house", "a red car"}
    assert told("red", "a dog on a mat") == {"red", "a dog on a red"}, "what the user keeps tells how it is said"
    assert "a photo of a ball" in told("ball")


def test_a_colour_that_steers_two_things_otherwise_is_told(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def directions(_: Any, words: list[str], *__: Any) -> torch.Tensor:
        rows = {"red": [1.0, 0.0, 1.0, 0.0, 1.0, 0.0], "blue": [1.0, 0.1, 1.0, 0.0, 0.0, 1.0]}
        return torch.tensor([rows.get(word, [0.0, 1.0, 0.5, 1.0, 0.5, 1.0]) for word in words])

    monkeypatch.setattr(surveying, "_directions", directions)
    _, found = everyday_survey(pico, Concept(("red",)), Survey(candidates=1), Silent())
    steady = {one.word: one.steady for one in found}
    assert steady["blue"] == pytest.approx(0.0) and steady["green"] == pytest.approx(1.0)
    kept = survey(pico, Concept(("red",), None, ("a blue house", "a green tree")), Survey(candidates=1))
    assert all(one.steady == 1.0 for one in kept), "prompts to keep say colours in whatever sentences"


def test_a_word_that_the_model_does_not_know_is_not_found(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not move a picture, the direction in which it does so is chance."""
    look, concept = Survey(candidates=8, states=3, alike=-1.0, looks=0), Concept(("ball",), None, ("a dog",))
    heard = survey(pico, concept, look)
    unheard = next(one.word for one in heard if not one.kept)
    encode = pico.encode

    def deaf(prompts: list[str]) -> Any:
        return encode([prompt.replace(unheard, "").replace("dog", "").strip() for prompt in prompts])

    monkeypatch.setattr(pico, "encode", deaf)
    found = {one.word: one for one in survey(pico, concept, look)}
    assert unheard not in found and len(found) > 1
    assert found["dog"].strength < FAINT and with_likest(concept, list(found.values())).alternative is None


def test_an_everyday_word_that_steers_the_same_way_belongs(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands for everything that no user names only where it is something else than the concept."""
    encode = pico.encode

    def heard(prompts: list[str]) -> Any:
        return encode([prompt.replace("cat", "ball") for prompt in prompts])

    monkeypatch.setattr(pico, "encode", heard)
    look = Survey(candidates=4, states=3, frames=0, looks=0)
    (cat,) = [one for one in survey(pico, Concept(("ball",)), look) if one.word == "cat"]
    assert cat.belongs and not cat.kept
    kept = survey(pico, Concept(("ball",), None, ("a cat",)), look)
    assert not any(one.belongs for one in kept if one.word == "cat"), "what the user keeps stays"
    concept, found = everyday_survey(pico, Concept(("ball",)), look, Silent())
    assert "a cat" not in concept.keep and "cat" in expanded(concept, found, 5).words


@pytest.mark.parametrize(
    ("share", "shown", "belong"),
    [
        (EXPLAINING, NEARLY, {"orb"}),
        (EXPLAINING, 0.0, {"orb", "hoop"}),
        (EXPLAINING, NEARLY - 0.01, set()),
        (EXPLAINING - 0.01, 1.0, set()),
    ],
)
def test_pictures_decide_on_words_in_doubt(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, share: float, shown: float, belong: set[str]
) -> None:
    """An orb steers a hair more like what is kept than like the concept, a hoop much more."""
    asked: list[str] = []
    rows = {"ball": [1.0, 0.0], "ring": [0.7, 0.714], "orb": [0.93, 0.37], "hoop": [0.75, 0.66], "far": [0.2, 0.98]}

    class Eyes:
        def __init__(self, _: Any, own: tuple[str, ...], *__: Any) -> None:
            assert own == ("ball",)

        def explained(self, words: list[str]) -> list[float]:
            asked.extend(words)
            return [share] * len(words)

        def sees(self, word: str, rivals: list[str]) -> float:
            assert rivals == ["ring"]
            return shown

    monkeypatch.setattr(surveying, "LOOKED_AT", 24)
    monkeypatch.setattr(surveying, "PictureLooks", Eyes)
    monkeypatch.setattr(surveying, "_directions", lambda _, words, *__: torch.tensor([rows[word] for word in words]))
    monkeypatch.setattr(surveying, "nearest_words", lambda *_: ["orb", "hoop", "far"])
    concept = Concept(("ball",), None, ("a ring",))
    found = survey(pico, concept, Survey(around_kept=0, margin=0.05), everyday=False)
    assert {one.word for one in found if one.belongs} == belong
    assert asked == ["orb", "hoop"], "what is not alike is not in doubt"


def test_words_are_judged_on_small_pictures(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full-size model an instant method would otherwise wait for minutes."""
    sizes, predict = set(), pico.predict

    def seen(z: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.add(tuple(z.shape[1:]))
        return predict(z, *rest)

    monkeypatch.setattr(pico, "predict", seen)
    monkeypatch.setattr(surveying, "LARGEST_SIDE", pico.latent_shape[1] // 2)
    survey(pico, Concept(("ball",)), Survey(candidates=2, states=1))
    channels, *sides = pico.latent_shape
    assert sizes == {(channels, *(side // 2 for side in sides))}


def test_the_word_that_takes_the_place_is_known_and_not_read_as_the_concept() -> None:
    found = [
        NearWord("sphere", 0.9, True),
        NearWord("globule", 0.8, False),
        NearWord("hoop", 0.6, False, strength=0.3),
        NearWord("hare", 0.55, False),
        NearWord("flower", 0.4, False, True),
    ]
    concept = Concept(("ball",))
    assert with_known_stand_in(concept, found, explicit=False).alternative == "flower", "an everyday word comes first"
    assert with_known_stand_in(concept, found[:4], explicit=False).alternative == "hare"
    assert with_known_stand_in(concept, found, explicit=True).alternative == "flower", "one of the everyday words"
    assert with_known_stand_in(Concept(("ball",), "box"), found, explicit=False).alternative == "box"
    assert with_known_stand_in(concept, found[:2], explicit=False).alternative is None
    under_another_name = [NearWord("fir", 0.6, False, aside=0.8), NearWord("cat", 0.5, False, aside=0.4)]
    assert with_known_stand_in(Concept(("tree",)), under_another_name, explicit=False).alternative == "cat"
    plural = [NearWord("dogs", 0.6, False), NearWord("cat", 0.5, False)]
    assert with_known_stand_in(Concept(("dog",)), plural, explicit=False).alternative == "cat"
    faint = NearWord("city", 0.6, False, True, strength=0.1)
    assert with_known_stand_in(concept, [faint], explicit=False).alternative is None


def test_of_several_concepts_each_gets_what_is_likest_to_it() -> None:
    several = Concept.joined([Concept(("ball", "orb"), "box"), Concept(("red",)), Concept(("star",))])
    pink = NearWord("pink", 0.6, False, True, each=(0.1, 0.2, 0.6, 0.0))
    moon = NearWord("moon", 0.6, False, True, each=(0.5, 0.6, 0.1, 0.5))
    told = with_likest(several, [pink, moon])
    assert dict(told.instead) == {"ball": "box", "orb": "box", "red": "pink", "star": "moon"}
    assert told.alternative is None
    crimson = NearWord("crimson", 0.9, True, each=(0.0, 0.1, 0.9, 0.2))
    assert expanded(told, [crimson], 5).instead[-1] == ("crimson", "pink"), "and so do its other names"
    assert with_likest(Concept(("ball", "orb")), [moon]).alternative == "moon"


def test_what_is_too_alike_takes_the_place_only_where_nothing_else_can() -> None:
    """Where dots look as stripes do, dots in their place leave them; smooth things are the contrary of both."""
    striped = Concept(("striped", "banded"))
    dotted, plain = NearWord("dotted", 0.81, False, True), NearWord("plain", -0.59, False, True, strength=0.3)
    assert with_likest(striped, [dotted, plain]).alternative == "plain"
    assert with_likest(striped, [dotted]).alternative is None
    checked = NearWord("chequered", 0.5, False)
    assert with_known_stand_in(striped, [dotted, checked], explicit=False).alternative == "chequered"
    assert with_known_stand_in(striped, [dotted], explicit=False).alternative == "dotted"
    assert with_known_stand_in(striped, [dotted], explicit=True).alternative is None
    red = Concept(("red",))
    yellow, white = (
        NearWord("yellow", 0.68, False, True, strength=0.7),
        NearWord("white", 0.66, False, True, strength=0.9),
    )
    assert with_likest(red, [yellow, white]).alternative == "white", "the one that steers further its way"
    assert with_likest(red, [yellow]).alternative == "yellow"
    green = NearWord("green", 0.24, False)
    indigo = NearWord("indigo", 0.65, False)
    assert with_known_stand_in(Concept(("blue",)), [indigo, green], explicit=False).alternative == "green"
    unsteady = replace(green, steady=0.25)
    black = NearWord("black", 0.19, False, strength=0.65)
    assert with_known_stand_in(Concept(("blue",)), [unsteady, black], explicit=False).alternative == "black"
    assert with_known_stand_in(Concept(("blue",)), [unsteady], explicit=False).alternative == "green", (
        "sooner than none"
    )
    kite, arrow = NearWord("kite", 0.75, False, True), NearWord("arrow", 0.31, False, True)
    alike = replace(kite, word="hut", likeness=0.65)
    assert with_likest(Concept(("tent",)), [kite, alike, arrow]).alternative == "hut", "one of two that are alike"
    assert with_likest(Concept(("tent",)), [kite, arrow]).alternative == "kite", (
        "a look-alike would go with the concept"
    )
    assert with_known_stand_in(Concept(("tent",)), [kite, arrow], explicit=False).alternative == "arrow"
    same = replace(kite, likeness=0.95)
    assert with_likest(Concept(("tent",)), [same, arrow]).alternative == "arrow", "that paints the concept"
    assert with_likest(Concept(("tent",)), [same, replace(same, word="hut", likeness=0.98)]).alternative == "kite"
    assert with_known_stand_in(Concept(("tent",)), [replace(arrow, likeness=-0.1)], explicit=False).alternative is None


def test_a_word_whose_use_is_only_guessed_takes_no_place_unless_it_is_kept() -> None:
    quartered, plain = Concept(("quartered",)), NearWord("plain", -0.59, False, True)
    expected = NearWord("expected", 0.1, False)
    assert with_likest(quartered, [plain]).alternative == "plain"
    assert with_known_stand_in(quartered, [expected], explicit=False).alternative is None
    assert with_likest(quartered, [replace(expected, kept=True)]).alternative == "expected"


def test_a_word_of_another_kind_takes_no_place() -> None:
    tree = NearWord("tree", 0.29, False, True)
    assert with_likest(Concept(("red",)), [tree]).alternative is None
    pink = NearWord("pink", 0.6, False)
    assert with_known_stand_in(Concept(("red",)), [tree, pink], explicit=False).alternative == "pink"
    part = NearWord("red", 0.9, False, True)
    assert with_likest(Concept(("red ball",)), [part]).alternative is None, "nor does a part of the phrase itself"


def test_what_is_only_said_of_kept_things_is_no_thing() -> None:
    """In the place of a hat, "lime" would paint everything in that colour, though limes are things too."""
    lime, boat = NearWord("lime", 0.6, False, True), NearWord("boat", 0.4, False, True)
    hat = Concept(("hat",), None, ("a plain lime boat", "a red boat"))
    assert with_likest(hat, [lime, boat]).alternative == "boat"
    assert with_likest(replace(hat, keep=(*hat.keep, "a lime")), [lime, boat]).alternative == "lime"
    drawing = NearWord("pencil drawing", 0.6, False)
    assert with_known_stand_in(Concept(("hat",)), [drawing, replace(boat, kept=False)], False).alternative == "boat"


@pytest.mark.parametrize("word", ["spotty", "polka dot", "gingham"])
def test_patterns_that_do_not_end_like_one_are_known(word: str) -> None:
    lime, plain = NearWord("lime", 0.6, False, True), NearWord("plain", -0.1, False, True)
    assert with_likest(Concept((word,)), [lime, plain]).alternative == "plain"


def test_colours_that_may_take_the_place_are_judged_again_on_more_states(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On few states another colour seems far from the concept's, and paints just that."""
    looks: list[tuple[int, int]] = []

    def directions(_: Any, words: list[str], frames: list[Any], settings: Survey, *__: Any) -> torch.Tensor:
        looks.append((settings.states, len(words)))
        red = [0.4, 0.9] if settings.states < AGAIN_STATES else [0.8, 0.6]
        rows = {"maroon": [1.0, 0.0], "red": red, "yellow": [0.3, 0.9]}
        return torch.tensor([rows.get(word, [0.0, 1.0]) * len(frames) for word in words])

    monkeypatch.setattr(surveying, "_directions", directions)
    concept, found = everyday_survey(pico, Concept(("maroon",)), Survey(candidates=1), Silent())
    assert {one.word: one.likeness for one in found}["red"] == pytest.approx(0.8)
    assert with_known_stand_in(concept, found, explicit=False).alternative == "yellow"
    assert looks[1:] == [(AGAIN_STATES, 1 + AGAIN)]
    looks.clear()
    everyday_survey(pico, Concept(("ball",)), Survey(candidates=1), Silent())
    assert len(looks) == 1, "things are told apart by more than their colour"


def test_a_thing_takes_no_colours_or_patterns_place_however_alike_it_is() -> None:
    """Many houses are red: the model reads them as more alike than another colour. A hole is better than a house."""
    house, blue = NearWord("house", 0.6, False, True), NearWord("blue", 0.4, False)
    for concept in (Concept(("red",)), Concept(("red", "blood"))):
        assert with_likest(concept, [house]).alternative is None
        assert with_known_stand_in(concept, [house, blue], explicit=False).alternative == "blue"
    assert with_known_stand_in(Concept(("striped",)), [house, blue], explicit=False).alternative is None
    assert with_known_stand_in(Concept(("cottage",)), [house, blue], explicit=False).alternative == "house"
    assert with_known_stand_in(Concept(("cottage",)), [blue], explicit=False).alternative is None, "nor the other way"
    assert with_known_stand_in(Concept(("naked",)), [house], explicit=True).alternative == "house", "there any will do"


def test_words_of_the_kind_are_looked_at_and_never_erased(pico: DiffusersModel) -> None:
    """They were not found near the concept: what is too alike among them takes no place, and is no name of it."""
    look = Survey(candidates=3, alike=-1.0, margin=-2.0, kin=6)
    found = survey(pico, Concept(("red",)), look, everyday=False)
    bare = survey(pico, Concept(("red",)), replace(look, kin=0), everyday=False)
    assert {one.word for one in found if one.belongs} <= {one.word for one in bare}
    judged = survey(pico, Concept(("red",)), replace(look, alike=1.0), everyday=False)
    assert {"blue", "green"} & {one.word for one in judged} and not any(one.belongs for one in judged)


def test_where_no_kept_word_is_alike_the_models_own_are_asked(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "likest_kept", lambda *_: [NearWord("tree", 0.1, False, True)])
    monkeypatch.setattr(erasing, "survey", lambda *_, **__: [NearWord("pink", 0.6, False), NearWord("ruby", 0.9, True)])
    settings = find_method("closed_form").settings()
    erasure, _ = erase(pico, Concept(("red",), None, ("a tree",)), "closed_form", settings)
    assert erasure.manifest.alternative == "pink"


def test_parts_of_a_phrase_are_not_erased_with_it(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who erases red balls means neither balls nor what is red, though all of them steer alike."""
    said: list[str] = []
    monkeypatch.setattr(surveying, "_directions", lambda _, words, *__: said.extend(words) or torch.ones(len(words), 8))
    monkeypatch.setattr(surveying, "nearest_words", lambda *_: ["ruby", "ball"])
    found = survey(pico, Concept(("red ball",)), Survey(), everyday=False)
    assert said == ["red ball", "red", "ball", "ruby"]
    assert {one.word: one.belongs for one in found} == {"red": False, "ball": False, "ruby": False}
    beside = survey(pico, Concept(("orb", "red ball")), Survey(), everyday=False)
    assert {one.word: one.belongs for one in beside} == {"ruby": True, "ball": True}, "beside a word it may be another"
    name = survey(pico, Concept(("Red Ball",)), Survey(), everyday=False)
    assert all(one.belongs for one in name), "the parts of a name are judged as all words are"
    kept = survey(pico, Concept(("red ball",), None, ("a red house",)), Survey(), everyday=False)
    assert {one.word for one in kept if one.kept} == {"red", "house"}


def test_found_words_join_the_concept_and_neighbours_are_kept(pico: DiffusersModel) -> None:
    found = [NearWord("orb", 0.9, True), NearWord("sphere", 0.8, True), NearWord("box", 0.3, False)]
    several = Concept.joined([Concept(("ball",)), Concept(("dog",), "orb")])
    assert expanded(several, found, 5).words == ("ball", "dog", "sphere"), "what takes another's place is not erased"
    grown = expanded(Concept(("ball",), None, ("a red sphere",)), found, 5)
    assert grown.words == ("ball", "orb"), "a word of a kept prompt is not erased"
    assert grown.named == ("ball",) and grown.found == ("orb",)
    listed = Concept(("ball",), None, ("masterpiece, a sphere, studio light",))
    assert expanded(listed, found, 5).words == ("ball", "orb"), "neither is one with a comma behind it"
    kept = with_neighbours(pico, Concept(("dog",)), {"box": ""})
    assert kept.neighbours == ("a box",) and kept.kept_prompts == ("", "a box")
    inside = with_neighbours(pico, Concept(("dog",), None, ("a red house",)), {"box": "", "scarlet": "red", "cat": ""})
    assert inside.keep == ("a red house",), "what the user names stays apart from what is found near it"
    assert inside.neighbours == ("a box", "a scarlet house", "a red cat")
    everyday = with_everyday_keep(pico, kept).keep
    assert "a cat" in everyday and "a dog" not in everyday


def test_what_nobody_asked_to_keep_is_not_kept_where_it_is_read_as_the_concept() -> None:
    found = [NearWord("cat", 0.8, False, True), NearWord("dog", 0.4, False, True), NearWord("puma", 0.7, True)]
    concept, rest = without_alike(Concept(("kitten",), None, ("a cat", "a dog", "a Cat, asleep")), found, 0.55)
    assert concept.keep == ("a dog",) and [one.word for one in rest] == ["dog", "puma"]
    assert with_likest(concept, rest).alternative == "dog"


@pytest.mark.parametrize("name", ["auto", "sage"])
def test_the_models_own_words_are_erased_too(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = [NearWord("orb", 0.9, True), NearWord("cat", 0.3, False)]
    monkeypatch.setattr(vocabulary, "survey", lambda *_: found)
    method, concept = find_method(name), Concept(("ball",), None, ("a red box",))
    assert method.prepare is not None
    told = method.prepare(pico, concept, method.settings(), Silent())
    assert told.words == ("ball", "orb") and told.neighbours == ("a cat",)
    assert method.prepare(pico, concept, method.settings(search=False), Silent()) is concept


def test_what_takes_the_place_is_of_the_kind_of_the_users_words(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orange is a fruit too, and so is what the model paints alike; who erases the colour gets a colour."""
    found = [NearWord("pumpkin", 0.9, True), NearWord("car", 0.5, False, True), NearWord("pink", 0.4, False)]
    monkeypatch.setattr(vocabulary, "everyday_survey", lambda _, concept, *__: (concept, found))
    method = find_method("auto")
    assert method.prepare is not None
    told = method.prepare(pico, Concept(("orange",)), method.settings(), Silent())
    assert told.words == ("orange", "pumpkin") and told.alternative == "pink"


def test_auto_without_prompts_to_keep_takes_a_word_instead(pico: DiffusersModel) -> None:
    method = find_method("auto")
    assert method.prepare is not None
    told = method.prepare(pico, Concept(("ball",)), method.settings(candidates=4, alike=0.9), Silent())
    assert told.alternative and told.alternative not in told.words
    assert set(told.keep) <= set(with_everyday_keep(pico, Concept(("ball",))).keep)


def test_without_prompts_to_keep_other_methods_take_a_word_instead_too(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [NearWord("sphere", 0.9, True), NearWord("flower", 0.8, False, True), NearWord("box", 0.4, False)]
    monkeypatch.setattr(surveying, "survey", lambda *_, **__: found)
    solve = METHODS["closed_form"].settings
    erasure, _ = erase(pico, Concept(("ball",)), "closed_form", solve())
    assert erasure.manifest.alternative == "box" and "a cat" in erasure.manifest.keep
    assert "a flower" not in erasure.manifest.keep, "what the model reads as the concept is not kept"
    bare, _ = erase(pico, Concept(("ball",)), "closed_form", solve(replace=False))
    assert bare.manifest.alternative is None


def sum_of_squares(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([w.T @ w for w in weights.values()]).sum(0)


def test_returning_embeddings_are_read_as_the_concept_was() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {str(i): torch.randn(20, 8, dtype=torch.float64, generator=generator) for i in range(3)}
    change = torch.eye(8, dtype=torch.float64) + torch.randn(8, 8, dtype=torch.float64, generator=generator)
    changed = {name: w @ change for name, w in weights.items()}
    concept = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    found = returning(sum_of_squares(weights), change, concept, 1e-10)

    def missed(embedding: torch.Tensor) -> float:
        return sum(float((changed[n] @ embedding - weights[n] @ concept[0]).pow(2).sum()) for n in weights)

    assert all(missed(found[0]) <= missed(found[0] + 1e-3 * torch.randn(8, generator=generator)) for _ in range(20))
    stacked, wanted = torch.cat(list(changed.values())), torch.cat([w @ concept[0] for w in weights.values()])
    torch.testing.assert_close(found[0], torch.linalg.lstsq(stacked, wanted[:, None]).solution[:, 0])


@torch.no_grad()
def test_rece_moves_what_would_bring_the_concept_back(pico: DiffusersModel) -> None:
    """The embeddings that undo the closed form are read as the replacement after one round, but not before."""
    options: dict[str, Any] = {"damping": 1e-3, "tolerance": 0.0, "contexts": 0, "neighbours": 0, "replace": False}
    said, weights = CONCEPT.sayings(), {}
    subject, instead = subject_rows(pico.encode([s.prompt for s in said]), pico.encode([s.instead for s in said]))
    changed: dict[str, dict[str, torch.Tensor]] = {}
    for name, more in (("closed_form", {}), ("rece", {"rounds": 1, "search_damping": 0.01})):
        erasure, _ = erase(pico, CONCEPT, name, METHODS[name].settings(**options, **more))
        weights = {layer: pico.weight(layer).double() for layer in erasure.deltas}
        changed[name] = {layer: w + erasure.deltas[layer].change().double() for layer, w in weights.items()}
    stacked, first = (torch.cat([every[layer] for layer in weights]) for every in (weights, changed["closed_form"]))
    change = torch.linalg.lstsq(stacked, first).solution
    found = returning(sum_of_squares(weights), change, subject, 0.01)

    def missed(name: str) -> float:
        return sum(float((changed[name][n] @ found.T - weights[n] @ instead.T).norm()) for n in weights)

    assert missed("rece") < 0.5 * missed("closed_form")


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@torch.no_grad()
def test_inversion_leads_back_to_the_picture(pico_models: dict[str, DiffusersModel], family: str) -> None:
    """Going back to noise and forth without an erasure, and without guidance, gives the picture again."""
    model = pico_models[family]
    latents = 0.5 * torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))

    def missed(steps: int) -> float:
        back = purify(model, latents, [""] * 2, [], steps=steps, guidance=1.0, share=0.7)
        return float((back - latents).norm() / latents.norm())

    coarse, fine = missed(60), missed(120)
    assert fine < 0.2 and fine < 0.7 * coarse, "the error of a step falls with its size"
    assert (invert(model, latents, 30, 0.7) - latents).norm() / latents.norm() > 0.5


def test_purifying_applies_the_erasure_on_the_way_out_only(pico: DiffusersModel) -> None:
    latents = torch.zeros(1, *pico.latent_shape)
    with stopped(pico, CONCEPT, "leco") as (trainer, _):
        deltas = trainer.deltas
    off, on = (purify(pico, latents, ["a ball"], [(deltas, s)], steps=4) for s in (0.0, 1.0))
    plain = purify(pico, latents, ["a ball"], [], steps=4)
    assert torch.equal(off, plain) and not torch.equal(on, plain)
    with pytest.raises(InvalidSettings, match="share of the way"):
        purify(pico, latents, ["a ball"], [], share=1.5)


def test_of_many_prompts_to_keep_some_words_are_compared_with(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        surveying, "_directions", lambda model, words, *_: asked.append(words) or torch.ones(len(words), 3)
    )
    keep = tuple(f"a thing{number}" for number in range(1000))
    survey(pico, Concept(("ball",), None, keep), Survey(candidates=0, around_kept=0), everyday=False)
    assert len(asked[0]) <= 1 + MOST_ANCHORS and "thing0" in asked[0] and "thing992" in asked[0]


def test_words_are_looked_for_among_those_that_the_tokenizer_has(pico: DiffusersModel) -> None:
    """Some text encoders have more rows than the tokenizer has tokens; those near to the concept hid all words."""
    encoder = deepcopy(pico.text_encoders[0])
    layer = encoder.get_input_embeddings()
    useless = layer.weight.detach()[pico.tokenize(["ball"])[0]].repeat(2000, 1)
    layer.weight = torch.nn.Parameter(torch.cat([layer.weight.detach(), useless]))
    larger = DiffusersModel(pico.unet, [encoder], pico.tokenizers, pico.schedule)
    before = nearest_words(pico, ["ball"], 4)
    assert before and nearest_words(larger, ["ball"], 4) == before


def test_a_concept_that_the_model_hardly_knows_is_told(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other words steer ten times as much: perhaps it is misspelled."""
    settings = find_method("closed_form").settings(neighbours=0, replace=True)
    _, known = erase(pico, CONCEPT, "closed_form", settings)
    assert known.notes == []
    plain = surveying._directions

    def faint(model: Any, prompts: list[str], *others: Any) -> torch.Tensor:
        own = torch.tensor([prompt in CONCEPT.words for prompt in prompts])
        return torch.where(own[:, None], 0.1, 1.0) * plain(model, prompts, *others)

    monkeypatch.setattr(surveying, "_directions", faint)
    _, unknown = erase(pico, replace(CONCEPT, alternative=None), "closed_form", settings)
    assert len(unknown.notes) == 1 and "hardly knows 'ball'" in unknown.notes[0]


def test_words_are_measured_against_those_that_belong(pico: DiffusersModel) -> None:
    found = survey(pico, Concept(("ball",)), Survey(candidates=6, alike=-1.0, margin=-9.0, states=1))
    assert any(one.belongs for one in found)
    assert all(-1.0 <= one.aside <= 1.0001 and one.alike >= one.likeness for one in found)
    assert all(one.aside == pytest.approx(1.0, abs=1e-3) for one in found if one.belongs), "with themselves"


def test_parts_of_an_erased_phrase_are_kept_with_other_things(pico: DiffusersModel) -> None:
    """Who erases orange cups keeps orange houses and red cups."""
    assert {"a orange house", "a red cup"} <= set(kept_parts(Concept(("orange cup",))))
    assert "a red cup" not in kept_parts(Concept(("red cup",))), "that is what is erased"
    assert kept_parts(Concept(("Ada Lovelace",))) == kept_parts(Concept(("red cup", "cup"))) == []
    settings = find_method("auto").settings(candidates=4)
    told = vocabulary.with_own_words(pico, Concept(("red box",)), settings, Silent())
    assert {"a red house", "a blue box"} <= set(told.neighbours)
