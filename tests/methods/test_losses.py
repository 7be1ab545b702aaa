"""Each method's loss against a slow reference straight from its formula: values and gradients, eps and v models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import CONCEPT, Slow, assert_same, stopped
from torch import Tensor
from torch.nn import functional as F

from erasure_core import Concept
from erasure_core.concept import Saying
from erasure_core.concept_pictures import ConceptPictures
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.image_prompt import refined
from erasure_core.methods import find_method
from erasure_core.methods.all_but_one import diagnose
from erasure_core.methods.co_erasing import blurred
from erasure_core.methods.text_space import Pair, phrasing_for
from erasure_core.self_check import TEMPLATES
from erasure_core.trainer import Step

FAMILIES = ["sd1", "sd2"]
"""The first predicts eps, the second v."""


def loss_of(step: Step) -> Tensor:
    trainer = step.trainer
    assert trainer.method.loss is not None
    return torch.stack(list(trainer.method.loss(trainer.settings, step).values())).sum()


def mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean()


def kept_term(slow: Slow, step: Step) -> Tensor:
    states = zip(step.kept.latents, step.kept.t, step.kept.prompts, strict=True)
    return mean([(slow.now(z, t, r) - slow.before(z, t, r)).pow(2).mean() for z, t, r in states])


def esd_target(slow: Slow, s: Any, z: Tensor, t: Tensor, said: Saying, alternative: bool) -> Tensor:
    base = slow.before(z, t, said.without)
    away = slow.before(z, t, said.prompt) - base
    if not alternative:
        return base - s.negative * away
    return base - s.negative_beside * away + s.towards * (slow.before(z, t, said.instead) - base)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("alternative", "without"), [("box", "hard"), (None, "neutralise"), (None, "hard")])
def test_all_but_one(pico_models: dict[str, DiffusersModel], family: str, alternative: str, without: str) -> None:
    concept = replace(CONCEPT, alternative=alternative)
    options = {"without": without, "negative": 1.5, "drift_weight": 0.6, "keep_weight": 0.7}
    with stopped(pico_models[family], concept, "all_but_one", layers="cross-attention", **options) as (trainer, step):
        slow, surgical, drift = Slow(trainer), [], []
        for z, t, prompt in zip(step.concept.latents, step.concept.t, step.concept.prompts, strict=True):
            said = trainer.sayings[prompt]
            empty, base = slow.before(z, t, ""), slow.before(z, t, said.without)
            goal = base - empty
            if alternative is not None:
                goal = slow.before(z, t, said.instead) - empty
            elif without == "hard":
                goal = base - empty - 1.5 * (slow.before(z, t, prompt) - base)
            now = slow.now(z, t, "")
            surgical.append((slow.now(z, t, prompt) - now.detach() - goal).pow(2).mean())
            drift.append((now - empty).pow(2).mean())
        reference = mean(surgical) + 0.6 * mean(drift) + 0.7 * kept_term(slow, step)
        assert_same(trainer, loss_of(step), reference)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alternative", [None, "box"])
@pytest.mark.parametrize("layers", ["text-encoder", "cross-attention-kv"])
def test_sage_in_noise(
    pico_models: dict[str, DiffusersModel], family: str, alternative: str | None, layers: str
) -> None:
    concept = replace(CONCEPT, alternative=alternative)
    options: dict[str, Any] = {"warm_up": 0, "check_every": 1, "check_starts": 4, "check_steps": 2}
    options |= {"negative": 1.5, "negative_beside": 0.4}
    options |= {"boundary_weight": 0.8, "global_weight": 0.5, "keep_weight": 0.7}
    options |= {"text_weight": 3.0, "text_erase_weight": 0.4, "text_prompts": 6}
    with stopped(pico_models[family], concept, "sage", layers=layers, **options) as (trainer, step):
        s, slow, generator = trainer.settings, Slow(trainer), torch.Generator().manual_seed(2)
        state = step.state
        found = state.drawn(replace(step, generator=generator))  # type: ignore[attr-defined]
        erase, boundary = [], []
        for z, t, p in zip(step.concept.latents, step.concept.t, step.concept.prompts, strict=True):
            goal = esd_target(slow, s, z, t, trainer.sayings[p], bool(alternative))
            erase.append((slow.now(z, t, p) - goal).pow(2).mean())
        for i, (z, t) in enumerate(zip(found.draw.latents, found.draw.t, strict=True)):
            at_boundary = trainer.model.predict(z[None], t[None], found.points[[i]])[0]
            # What the frozen model makes of the point, and of the point without the concept or with the alternative.
            base, said = found.draw.teacher["without"][i], found.draw.teacher["prompt"][i]
            goal = base - (0.4 if alternative else 1.5) * (said - base)
            if alternative:
                goal = goal + found.draw.teacher["alternative"][i] - base
            boundary.append((at_boundary - goal).pow(2).mean())
        reference = mean(erase) + 0.8 * mean(boundary) + 0.7 * kept_term(slow, step)
        reference = reference + 0.5 * relations_by_hand(trainer, layers)
        if layers == "text-encoder":
            phrasing = phrasing_for(trainer, trainer.model)
            kept = [phrasing.kept_pair(generator) for _ in range(6)]
            reference = reference + 3.0 * text_by_hand(trainer, kept)
            if alternative:
                erased = [phrasing.concept_pair(generator) for _ in range(6)]
                reference = reference + 0.4 * text_by_hand(trainer, erased)
        assert_same(trainer, loss_of(step), reference)


def test_a_boundary_point_keeps_what_it_says_around_the_concept(pico: DiffusersModel) -> None:
    """With nothing moved a point is the prompt that was typed, with other words in the concept's place as well."""
    concept = replace(CONCEPT, words=("ball",), alternative="tall box")
    options: dict[str, Any] = {"warm_up": 0, "check_every": 1, "check_starts": 6, "check_steps": 1, "batch": 24}
    with stopped(pico, concept, "sage", layers="text-encoder", **options) as (trainer, step):
        state: Any = step.state
        typed = [text.format("ball") for text in TEMPLATES[:3]]
        rows, ends = trainer.model.token_rows(trainer.model.tokenize(typed))  # type: ignore[attr-defined]
        said = [(len(trainer.model.tokenize([text.split("{}")[0]])[0]) + 1, 1) for text in TEMPLATES[:3]]  # type: ignore[attr-defined]
        table = trainer.model.token_tables()[0]  # type: ignore[attr-defined]
        state.tensors = {
            "point.embeddings.0": table[rows[0]].detach().clone(),
            "point.ends": torch.tensor(ends),
            "point.said": torch.tensor(said),
            "point.word": torch.zeros(3, dtype=torch.long),
        }
        with torch.no_grad():
            as_typed = trainer.model.encode(typed)
            for other in ("tall box", "box", ""):
                trainer.concept = replace(concept, alternative=other or None)
                with trainer.deltas.off():  # what is to take their place is the frozen model's
                    expected = trainer.model.encode([" ".join(t.format(other).split()) for t in TEMPLATES[:3]])
                found = state.drawn(step)
                apart = (found.points.context[:, None] - as_typed.context).flatten(2).norm(dim=-1)
                which = apart.argmin(dim=1).tolist()
                assert set(which) == {0, 1, 2}, "all three of them were drawn"
                torch.testing.assert_close(found.points.context, as_typed.context[which], atol=1e-5, rtol=1e-4)
                assert found.instead.ends == expected[which].ends
                torch.testing.assert_close(found.instead.context, expected.context[which], atol=1e-5, rtol=1e-4)


def relations_by_hand(trainer: Any, layers: str) -> Tensor:
    """KL(softmax S0 || softmax S) row by row, with the diagonal left out."""

    def features() -> list[Tensor]:
        found = []
        for prompt in trainer.concept.keep:
            both = trainer.model.encode([prompt, ""])
            states = [both.context[row, both.ends[row]] for row in range(2)]
            if layers == "cross-attention-kv":
                reading = [trainer.layers[name] for name in sorted(trainer.layers)]
                states = [torch.cat([layer(state) for layer in reading]) for state in states]
            found.append(states[0] - states[1])
        return found

    with torch.no_grad(), trainer.deltas.off():
        before = features()
    now, rows = features(), []
    for i in range(len(now)):
        others = [j for j in range(len(now)) if j != i]
        old = torch.stack([F.cosine_similarity(before[i], before[j], dim=0) / 0.07 for j in others]).softmax(0)
        new = torch.stack([F.cosine_similarity(now[i], now[j], dim=0) / 0.07 for j in others]).log_softmax(0)
        rows.append((old * (old.log() - new)).sum())
    return mean(rows)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_sage_in_text(pico_models: dict[str, DiffusersModel], family: str) -> None:
    concept = replace(CONCEPT, alternative="box")
    options: dict[str, Any] = {"erase_in": "text", "check_every": 0, "global_weight": 0.0, "keep_weight": 0.7}
    options |= {"text_weight": 0.0, "text_erase_weight": 0.0}
    with stopped(pico_models[family], concept, "sage", layers="text-encoder", **options) as (trainer, step):
        slow, parts = Slow(trainer), []
        for prompt in step.concept.prompts:
            said = trainer.model.encode([prompt])
            with torch.no_grad(), trainer.deltas.off():
                anchor = trainer.model.encode([trainer.sayings[prompt].instead])
            # Both end with one word, so their last words and what follows stand at the same places.
            assert said.ends == anchor.ends
            parts.append((said.context[0, said.ends[0] - 1 :] - anchor.context[0, said.ends[0] - 1 :]).pow(2).mean())
            if said.pooled is not None and anchor.pooled is not None:
                parts.append((said.pooled - anchor.pooled).pow(2).mean())
        assert_same(trainer, loss_of(step), mean(parts) + 0.7 * kept_term(slow, step))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at", [0, 5])
def test_co_erasing_in_both_stages(pico_models: dict[str, DiffusersModel], family: str, at: int) -> None:
    options: dict[str, Any] = {"steps": 10, "text_share": 0.5, "negative": 1.5, "keep_weight": 0.7}
    options |= {"own_pictures": 2, "inversion_steps": 2, "picture_share": 1.0, "text_weight": 3.0, "text_prompts": 6}
    with stopped(pico_models[family], CONCEPT, "co_erasing", at=at, **options) as (trainer, step):
        slow, erase, shown = Slow(trainer), [], 0
        tokens, which = trainer.state.tensors["tokens"], trainer.state.tensors["which"]
        for z, t, p, trajectory in zip(
            step.concept.latents, step.concept.t, step.concept.prompts, step.concept.which.tolist(), strict=True
        ):
            picture = int(which[trajectory]) if at and not trainer.sayings[p].without else -1
            said = trainer.model.encode([p])
            if picture >= 0:
                shown += 1
                query = tokens[picture]
                text = said.context[0, 1 : said.ends[0] + 1]
                said = replace(said, image=((query @ text.T / math.sqrt(64)).softmax(-1) @ text)[None])
            if at:
                # The teacher of the second stage is the change as it was when the stage began: as it is now.
                with torch.no_grad():
                    base = slow.now(z, t, trainer.sayings[p].without)
                    within = trainer.model.predict(z[None], t[None], said)[0]
            else:
                base, within = slow.before(z, t, trainer.sayings[p].without), slow.before(z, t, p)
            goal = base - 1.5 * (within - base)
            erase.append((trainer.model.predict(z[None], t[None], said)[0] - goal).pow(2).mean())
        assert shown == (1 if at else 0), "one of the drawn prompts says the concept alone"
        phrasing, generator = phrasing_for(trainer, trainer.model), torch.Generator().manual_seed(2)
        reference = mean(erase) + 0.7 * kept_term(slow, step)
        reference = reference + 3.0 * text_by_hand(trainer, [phrasing.kept_pair(generator) for _ in range(6)])
        assert_same(trainer, loss_of(step), reference)


def test_of_several_concepts_prompts_meet_pictures_of_their_own(pico: DiffusersModel) -> None:
    several = Concept.joined([Concept(("ball", "orb")), Concept(("cat",))])
    options: dict[str, Any] = {"own_pictures": 2, "inversion_steps": 1, "contexts": 0}
    with stopped(pico, several, "co_erasing", **options) as (trainer, _):
        tokens = trainer.state.tensors["tokens"]
        assert len(tokens) == 4, "two of each"
        chosen = trainer.state.shown(["a ball", "orb", "cat", "cat", "cat"], [3, 0, 3, 0, -1], len(tokens))  # type: ignore[attr-defined]
        assert chosen == [1, 0, 3, 2, -1]


@pytest.mark.parametrize(("method", "negative"), [("esd", 0.5), ("all_but_one", 1.5), ("sage", 0.5)])
def test_of_several_concepts_one_without_an_alternative_is_pushed_away_as_it_would_be_alone(
    pico: DiffusersModel, method: str, negative: float
) -> None:
    several = Concept.joined([Concept(("ball",), "box"), Concept(("cat",))])
    options: dict[str, Any] = {"without": "hard", "negative": 1.5} if method == "all_but_one" else {}
    options |= {} if method == "esd" else {"search": False}
    with stopped(pico, several, method, driver="goal", **options) as (trainer, _):
        draw = trainer.pools["concept"].draw(64, torch.Generator().manual_seed(0))
        says_cat = torch.tensor([trainer.sayings[prompt].word == 1 for prompt in draw.prompts])
        assert 0 < says_cat.sum() < 64
        assert draw.unanswered is not None and torch.equal(draw.unanswered, says_cat)
        wanted, toward = trainer.method.goal(trainer.settings, draw), draw.towards  # type: ignore[misc]
        assert toward is not None
        torch.testing.assert_close(wanted[says_cat], (draw.base - negative * draw.guidance)[says_cat])
        torch.testing.assert_close(wanted[~says_cat], (draw.base + toward)[~says_cat])
        read = trainer.pools["concept"].from_tensors(
            trainer.pools["concept"].tensors(), tuple(trainer.sayings), trainer.model.device, trainer.unanswered
        )
        assert read.unanswered == trainer.pools["concept"].unanswered


def test_the_residual_is_what_is_left_of_the_way_from_the_alternative(pico: DiffusersModel) -> None:
    concept = replace(CONCEPT, alternative="box")
    with stopped(pico, concept, "all_but_one") as (trainer, step):
        draw = step.concept
        with trainer.deltas.off():
            assert trainer.residual_guidance(draw) == pytest.approx(1.0, abs=1e-4)
        swapped = replace(draw, prompts=[trainer.sayings[p].prompt for p in draw.prompts])
        trainer.predict_in_pieces = lambda wanted: [draw.teacher["alternative"], draw.base]  # type: ignore[method-assign]
        assert trainer.residual_guidance(swapped) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_with_boundary_points_and_pictures(pico_models: dict[str, DiffusersModel], family: str) -> None:
    model = pico_models[family]
    concept = replace(CONCEPT, alternative="box")
    options: dict[str, Any] = {"warm_up": 0, "check_every": 1, "check_starts": 2, "check_steps": 2}
    options |= {"inversion_steps": 2, "drift_weight": 0.6, "keep_weight": 0.7}
    options |= {"boundary_weight": 0.8, "picture_weight": 0.5}
    options |= {"text_weight": 3.0, "text_erase_weight": 0.4, "text_prompts": 6}
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with stopped(model, concept, "auto", ConceptPictures(latents=latents), **options) as (trainer, step):
        slow, parts, drift = Slow(trainer), [], []
        generator = torch.Generator().manual_seed(2)
        found = trainer.state.drawn(replace(step, generator=generator))  # type: ignore[attr-defined]
        tokens = trainer.state.tensors["tokens"]
        shown = torch.randint(2, (3,), generator=generator).tolist()
        for i, (z, t, p) in enumerate(zip(step.concept.latents, step.concept.t, step.concept.prompts, strict=True)):
            now, empty = slow.now(z, t, ""), slow.before(z, t, "")
            saying = trainer.sayings[p]
            goal = slow.before(z, t, saying.instead) - empty
            said = trainer.model.encode([p])
            if not saying.without:  # what a picture shows of the rest would speak against a prompt that says more
                said = replace(said, image=refined(tokens[shown[i]], said.context[0, 1 : said.ends[0] + 1])[None])
            for weight, prediction, wanted in (
                (1.0, slow.now(z, t, p), goal),
                (0.5, trainer.model.predict(z[None], t[None], said)[0], goal),
            ):
                parts.append(4 * weight * (prediction - now.detach() - wanted).pow(2).mean())
            drift.append((now - empty).pow(2).mean())
        boundary = []
        for i, (z, t) in enumerate(zip(found.draw.latents, found.draw.t, strict=True)):
            at_boundary = trainer.model.predict(z[None], t[None], found.points[[i]])[0]
            boundary.append((at_boundary - found.draw.teacher["alternative"][i]).pow(2).mean())
        phrasing = phrasing_for(trainer, model)
        kept = [phrasing.kept_pair(generator) for _ in range(6)]
        erased = [phrasing.concept_pair(generator) for _ in range(6)]
        reference = mean(parts) / 2 + 0.8 * mean(boundary) + 0.6 * mean(drift) + 0.7 * kept_term(slow, step)
        reference = reference + 3.0 * text_by_hand(trainer, kept) + 0.4 * text_by_hand(trainer, erased)
        assert_same(trainer, loss_of(step), reference)


def text_by_hand(trainer: Any, pairs: list[Pair]) -> Tensor:
    """sum ||E(p) - E0(p')||^2 / sum ||E0(p') - mean||^2, prompt by prompt and token by token."""
    errors, wanted = [], []
    for pair in pairs:
        ours, theirs = trainer.model.tokenize([pair.prompt, pair.like])
        said = trainer.model.encode([pair.prompt]).context[0]
        with torch.no_grad(), trainer.deltas.off():
            like = trainer.model.encode([pair.like]).context[0]
        assert len(ours) == len(theirs), "so that all rows stand for the same"
        errors += [(said[row] - like[row]).pow(2).sum() for row in range(len(said))]
        wanted.append(like)
    every = torch.cat(wanted)
    return torch.stack(errors).sum() / (every - every.mean(dim=0)).pow(2).sum()


def test_leco_without_retention_is_the_erasing_term_alone(pico: DiffusersModel) -> None:
    with stopped(pico, CONCEPT, "leco", negative=1.5) as (trainer, step):
        slow, parts = Slow(trainer), []
        for z, t, prompt in zip(step.concept.latents, step.concept.t, step.concept.prompts, strict=True):
            goal = esd_target(slow, trainer.settings, z, t, trainer.sayings[prompt], False)
            parts.append((slow.now(z, t, prompt) - goal).pow(2).mean())
        assert_same(trainer, loss_of(step), mean(parts))


def test_refinement_follows_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, text = torch.randn(4, 16, generator=generator), torch.randn(5, 16, generator=generator)
    for i, row in enumerate(refined(tokens, text)):
        weights = [math.exp(float(tokens[i] @ text[j]) / 4) for j in range(5)]
        expected = sum(w / sum(weights) * text[j] for j, w in enumerate(weights))
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


def test_blur_keeps_the_mean_and_widens_a_point() -> None:
    point = torch.zeros(1, 2, 9, 9)
    point[..., 4, 4] = 1
    wide = blurred(point, 1.0)
    assert wide.sum().item() == pytest.approx(2.0, abs=1e-4)
    assert wide[0, 0, 4, 4] / wide[0, 0, 4, 6] == pytest.approx(math.exp(2), rel=1e-4)
    assert torch.equal(blurred(point, 0.0), point)


def test_diagnostics_of_an_untouched_model(pico: DiffusersModel) -> None:
    with stopped(pico, CONCEPT, "all_but_one", without="hard", negative=1.0) as (trainer, _):
        with torch.no_grad():
            for parameter in trainer.deltas.parameters():
                parameter.zero_()
        figures = diagnose(trainer)
    drifts = [value for name, value in figures.items() if name.startswith("drift")]
    residuals = [value for name, value in figures.items() if name.startswith("residual")]
    assert drifts and max(drifts) < 1e-5
    assert residuals == pytest.approx([2.0] * len(residuals), abs=1e-3), "g0 is away from its opposite by twice itself"


def test_every_method_says_how_it_relates_to_its_paper() -> None:
    for name in ("sage", "all_but_one"):
        assert find_method(name).status == "reconstruction from the published description"
    assert find_method("co_erasing").status == "reimplementation with corrections"
