"""Text states of many prompts: which rows are compared, and that the term holds and moves what it is to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_helpers import stopped

from erasure_core import Concept, erase
from erasure_core.everyday import PROMPTS
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import find_method
from erasure_core.methods.text_space import (
    Pair,
    Phrasing,
    TextSpaceSettings,
    _rows,
    aligned_error,
    phrasing_for,
    text_errors,
    text_terms,
)
from erasure_core.progress import Silent
from erasure_core.trainer import Step, Trainer

KEPT = ("a red house", "a green dog")


def test_rows_that_stand_for_the_same_are_compared() -> None:
    assert _rows([5, 6, 7], [5, 9, 7], 6) == (list(range(6)),) * 2
    assert _rows([5, 6, 7], [5, 8, 9, 7], 8) == ([0, 1, 2, 3, 4, 5, 6, 0], [0, 1, 3, 4, 5, 6, 7, 0])
    assert _rows([5], [], 6)[0][:4] == [0, 2, 3, 4], "without an alternative the end stands for the end"


@given(st.lists(st.integers(1, 4), max_size=5), st.lists(st.integers(1, 4), max_size=5))
def test_common_start_end_and_padding_are_in_it(ours: list[int], theirs: list[int]) -> None:
    pairs = set(zip(*_rows(ours, theirs, 8), strict=True))
    assert (0, 0) in pairs and (len(ours) + 1, len(theirs) + 1) in pairs
    assert all(left < 8 and right < 8 for left, right in pairs)
    tokens = [(ours[i - 1], theirs[j - 1]) for i, j in pairs if 0 < i <= len(ours) and 0 < j <= len(theirs)]
    assert sum(left != right for left, right in tokens) <= 1, "only the last token of what differs"


def test_concept_pairs_say_the_alternative_and_kept_pairs_themselves() -> None:
    phrasing = Phrasing(Concept(("ball", "orb"), None, KEPT, (("orb", "box"),)), ["piano", "ball", "lamp"])
    chance = torch.Generator().manual_seed(0)
    said = [phrasing.concept_pair(chance) for _ in range(60)]
    assert all(("orb" in pair.prompt) == ("box" in pair.like) for pair in said)
    assert not any("ball" in pair.like or "orb" in pair.like for pair in said)
    assert any(" and a " in pair.prompt for pair in said) and any("piano" in pair.prompt for pair in said)
    kept = [phrasing.kept_pair(chance) for _ in range(60)]
    assert all(pair.prompt == pair.like for pair in kept) and len({pair.prompt for pair in kept}) > 15


def test_everyday_prompts_that_say_the_concept_are_not_held() -> None:
    dogs = [prompt for prompt in PROMPTS if "dog" in prompt]
    phrasing = Phrasing(Concept(("dog",), None, ("x " * 100,)), ["lamp"])
    assert dogs and phrasing.kept and not set(dogs) & set(phrasing.kept)


def test_the_terms_fall_in_training_and_what_is_kept_stays(pico: DiffusersModel) -> None:
    concept = Concept(("ball",), "box", KEPT)
    settings = find_method("auto").settings(search=False, rank=4, steps=1)
    with pico.trainable():
        trainer = Trainer(pico, concept, find_method("auto"), settings, Silent())  # type: ignore[arg-type]
        assert len(set(phrasing_for(trainer, pico).words)) > 30, "everyday words and some of the vocabulary"
        with trainer.deltas.attached(trainer.layers):

            def terms(seed: int) -> dict[str, torch.Tensor]:
                step = Step(None, None, trainer, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
                return text_terms(step, TextSpaceSettings(text_weight=1.0, text_erase_weight=1.0, text_prompts=8))

            before = terms(0)
            assert before["text"].item() < 1e-9 < 1e-4 < before["erased text"].item()
            optimizer = torch.optim.Adam(trainer.deltas.parameters(), lr=3e-3)
            for step in range(40):
                optimizer.zero_grad()
                torch.stack(list(terms(step + 1).values())).sum().backward()
                optimizer.step()
            assert float(terms(0)["erased text"]) < 0.5 * float(before["erased text"])
            held, moved = (
                float(text_errors(trainer, pico, {"": [Pair(prompt, prompt) for prompt in prompts]})[""])
                for prompts in (KEPT, ["a ball"])
            )
    assert moved > 10 * held


def test_it_is_part_of_auto_only_where_the_text_encoder_learns(pico: DiffusersModel) -> None:
    def terms(layers: str) -> set[str]:
        small = find_method("auto").settings(
            layers=layers, search=False, rank=2, steps=1, trajectories=2, trajectory_steps=2, batch=1, check_every=0
        )
        _, history = erase(pico, Concept(("ball",), "box", KEPT), "auto", small)
        return set(history.losses[0])

    assert {"text", "erased text"} <= terms("text-encoder") and "text" not in terms("cross-attention-kv")


def test_recomputed_activations_give_the_same_gradient(pico: DiffusersModel) -> None:
    concept = Concept(("ball",), "box", KEPT)

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        settings = find_method("auto").settings(search=False, rank=4, checkpointing=checkpointing)
        with pico.trainable(checkpointing):
            trainer = Trainer(pico, concept, find_method("auto"), settings, Silent())  # type: ignore[arg-type]
            with trainer.deltas.attached(trainer.layers):
                step = Step(None, None, trainer, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
                text_terms(step, TextSpaceSettings(text_weight=0.0, text_prompts=20))["erased text"].backward()
        return [p.grad for p in trainer.deltas.parameters() if p.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert plain
    for one, other in zip(plain, again, strict=True):  # in smaller pieces, so that rounding differs
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(one.abs().max()))
    assert any(float(gradient.abs().max()) > 0 for gradient in plain)


def test_one_prompt_alone_has_a_pooled_state_but_no_spread_of_it(pico_models: dict[str, DiffusersModel]) -> None:
    model = pico_models["sdxl"]
    with torch.no_grad():
        one, other = model.encode(["a red box"]), model.encode(["a red cat"])
    tokens = [tuple(model.tokenize(["a red box", "a red cat"]))]
    assert float(aligned_error(one, other, tokens)) < 10  # type: ignore[arg-type]


def test_rows_that_are_all_the_same_ask_for_nothing(pico_models: dict[str, DiffusersModel]) -> None:
    """A pooled state without spread would count 10^13 times."""
    model = pico_models["sdxl"]
    with torch.no_grad():
        ours, theirs = model.encode(["a red box", "a red cat"]), model.encode(["a red dog"] * 2)
    row = model.tokenize(["a red dog"])[0]
    assert float(aligned_error(ours, theirs, [(row, row)] * 2)) < 10


def test_only_words_with_an_alternative_are_to_be_read_as_it() -> None:
    several = Concept.joined([Concept(("ball",), "box"), Concept(("cat",))])
    phrasing, chance = Phrasing(several, ["tree", "sky"]), torch.Generator().manual_seed(0)
    pairs = [phrasing.concept_pair(chance) for _ in range(60)]
    assert all("ball" in pair.prompt and "box" in pair.like for pair in pairs)


def test_where_nothing_is_to_take_its_place_the_rest_of_the_prompt_is_read() -> None:
    phrasing, chance = (
        Phrasing(Concept(("ball",), None, KEPT), ["piano"], nothing=True),
        torch.Generator().manual_seed(0),
    )
    pairs = [phrasing.concept_pair(chance) for _ in range(60)]
    assert all("ball" in pair.prompt and "ball" not in pair.like for pair in pairs)
    assert all(pair.like == " ".join(pair.like.split()) for pair in pairs)


@pytest.mark.parametrize(("without", "erases"), [("neutralise", True), ("hard", False)])
def test_all_but_one_reads_the_concept_as_nothing_where_nothing_replaces_it(
    pico: DiffusersModel, without: str, erases: bool
) -> None:
    """By noise alone the words still painted the concept in two of three pictures."""
    with stopped(pico, Concept(("ball",), None, KEPT), "all_but_one", without=without) as (trainer, step):
        assert trainer.method.loss is not None
        assert ("erased text" in trainer.method.loss(trainer.settings, step)) == erases
