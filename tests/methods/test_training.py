"""What all trained methods owe: the same bits again, the same bytes after a stop, and a model left alone."""

from __future__ import annotations

import inspect
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import CONCEPT, stopped
from random_changes import random_deltas
from stopping import StopAt

from erasure_core import Concept, Erasure, Report, Silent, erase, write_erasure
from erasure_core.boundary.harden import harden
from erasure_core.concept_pictures import ConceptPictures
from erasure_core.delta import DeltaSet
from erasure_core.errors import Cancelled, DeviceOutOfMemory, InvalidFile, InvalidSettings
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import METHODS, RECOMMENDED
from erasure_core.methods.boundary_points import Boundary, check_self_checks
from erasure_core.methods.registry import TrainingSettings
from erasure_core.model import has_room
from erasure_core.stand_in import with_likest
from erasure_core.survey import Survey, expanded, survey
from erasure_core.trainer import Trainer

SMALL: dict[str, Any] = {"rank": 2, "steps": 6, "refresh": 4, "trajectories": 4, "trajectory_steps": 3, "batch": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "sage": {"layers": "text-encoder", "warm_up": 1, "check_every": 2, "check_starts": 2, "check_steps": 2},
    "all_but_one": {"start": "closed_form", "spare_layout": 0.3, "layers": "text-encoder+cross-attention-kv"},
    "co_erasing": {
        "own_pictures": 2,
        "inversion_steps": 2,
        "text_share": 0.5,
        "blur": 0.5,
        "layers": "cross-attention",
    },
    "leco": {},
    "auto": {"candidates": 4, "warm_up": 1, "check_every": 2, "check_starts": 2, "check_steps": 2, "alike": -1.0},
}


class RaiseAt(Silent):
    """A host's interrupt from inside a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, report: Report) -> None:
        if report.stage == "training" and report.step == self.step:
            raise KeyboardInterrupt


def test_who_names_no_method_gets_the_recommended_one() -> None:
    for front in (erase, harden):
        assert inspect.signature(front).parameters["method"].default == RECOMMENDED


def settings_of(name: str) -> TrainingSettings:
    settings = METHODS[name].settings(**SMALL | OPTIONS[name])
    assert isinstance(settings, TrainingSettings)
    return settings


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def undisturbed(request: pytest.FixtureRequest, pico_models: dict[str, DiffusersModel]) -> tuple[str, Erasure]:
    """A method's name and what it makes of the pico model, made once."""
    return request.param, finished(pico_models["sd1"], request.param)


def finished(model: DiffusersModel, name: str, checkpoint: Path | None = None) -> Erasure:
    erasure, history = erase(model, CONCEPT, name, settings_of(name), checkpoint=checkpoint)
    assert len(history.losses) == 6 and METHODS[name].erasing in history.losses[0]
    return erasure


def test_resuming_anywhere_ends_with_the_same_bytes(
    pico: DiffusersModel, tmp_path: Path, undisturbed: tuple[str, Erasure]
) -> None:
    before = [parameter.clone() for part in (pico.unet, *pico.text_encoders) for parameter in part.parameters()]
    name, whole = undisturbed

    def written(erasure: Erasure) -> bytes:
        path = tmp_path / "ball.safetensors"  # a file tells its own name
        write_erasure(path, erasure, pico)
        return path.read_bytes()

    checkpoint = tmp_path / "state.partial"
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, name, settings_of(name), StopAt(2), checkpoint)
    with pytest.raises(KeyboardInterrupt):
        erase(pico, CONCEPT, name, settings_of(name), RaiseAt(4), checkpoint)
    assert written(finished(pico, name, checkpoint)) == written(whole)
    after = [parameter for part in (pico.unet, *pico.text_encoders) for parameter in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in pico.layers().values())


def test_at_strength_zero_the_prediction_is_the_same_bits(
    pico: DiffusersModel, undisturbed: tuple[str, Erasure]
) -> None:
    _, erasure = undisturbed
    z, t, text = torch.ones(1, *pico.latent_shape), torch.tensor([400]), pico.encode(["a ball"])
    with torch.no_grad():
        plain = pico.predict(z, t, text)
        with DeltaSet(erasure.deltas.deltas, 0.0).attached(pico.layers()):
            assert torch.equal(pico.predict(z, t, pico.encode(["a ball"])), plain)
        with erasure.deltas.attached(pico.layers()):
            assert not torch.equal(pico.predict(z, t, pico.encode(["a ball"])), plain)


def test_sage_notes_how_far_the_boundary_is(pico: DiffusersModel) -> None:
    _, history = erase(pico, CONCEPT, "sage", settings_of("sage"))
    assert [step for step, _ in history.figures] == [1, 3, 5]
    assert set(history.figures[0][1]) == {
        "radius of the boundary",
        "share of its points (embeddings, no prompts) that still read as the concept",
    }


def test_all_but_one_notes_drift_and_residual_for_parts_of_the_schedule(pico: DiffusersModel) -> None:
    _, history = erase(pico, CONCEPT, "all_but_one", settings_of("all_but_one"))
    ((step, figures),) = history.figures
    assert step == 6 and any(name.startswith("drift") for name in figures)
    assert all(value >= 0 for value in figures.values())


def test_last_figures_are_taken_in_pieces_and_never_cost_the_training(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, predict = 16, pico.predict

    def refusing(z: torch.Tensor, t: torch.Tensor, c: object) -> torch.Tensor:
        if len(z) > most:
            raise DeviceOutOfMemory("too much")
        return predict(z, t, c)  # type: ignore[arg-type]

    monkeypatch.setattr(pico, "predict", refusing)
    settings = replace(settings_of("all_but_one"), max_batch=16)
    _, history = erase(pico, CONCEPT, "all_but_one", settings)
    assert history.figures and len(history.losses) == settings.steps
    monkeypatch.setattr(METHODS["all_but_one"].state, "closing", lambda self: refusing(torch.zeros(99), None, None))  # type: ignore[arg-type]
    erasure, history = erase(pico, CONCEPT, "all_but_one", settings)
    assert not history.figures and erasure.manifest.steps_done == settings.steps


def test_without_the_search_auto_still_puts_a_kept_word_in_the_place(pico: DiffusersModel) -> None:
    erasure, _ = erase(pico, CONCEPT, "auto", replace(settings_of("auto"), search=False))
    assert erasure.manifest.words == CONCEPT.words
    assert erasure.manifest.alternative in {"red", "box", "cat", "dog"}
    bare, _ = erase(pico, CONCEPT, "auto", replace(settings_of("auto"), search=False, replace=False))
    assert bare.manifest.alternative is None


def test_auto_looks_around_what_is_kept_as_far_as_it_is_told(pico: DiffusersModel) -> None:
    few, many = (
        len(erase(pico, CONCEPT, "auto", replace(settings_of("auto"), neighbours=each))[0].manifest.keep)
        for each in (0, 6)
    )
    assert few < many


def test_auto_tells_what_it_erased_and_what_it_put_there(pico: DiffusersModel) -> None:
    erasure, _ = erase(pico, CONCEPT, "auto", settings_of("auto"))
    with pico.trainable():
        found = survey(pico, CONCEPT, Survey(4, alike=-1.0))
    assert erasure.manifest.words == expanded(CONCEPT, found, 12).words
    assert erasure.manifest.alternative == with_likest(CONCEPT, found).alternative
    assert erasure.manifest.alternative in {"red", "box", "cat", "dog"}, "a word of the prompts to keep"
    assert set(CONCEPT.keep) <= set(erasure.manifest.keep)
    told, _ = erase(pico, replace(CONCEPT, alternative="thing"), "auto", settings_of("auto"))
    assert told.manifest.alternative == "thing"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_preview_between_two_steps_sees_no_pictures(pico: DiffusersModel, checkpointing: bool) -> None:
    """A host paints previews with the model itself, on which the image branch still hangs."""
    z, t = torch.ones(1, *pico.latent_shape), torch.tensor([400])

    class Painting(Silent):
        painted = 0

        def update(self, report: Report) -> None:
            if report.stage == "training":
                with torch.no_grad():
                    assert pico.predict(z, t, pico.encode(["a ball"])).shape == z.shape
                self.painted += 1

    progress, settings = Painting(), replace(settings_of("co_erasing"), checkpointing=checkpointing)
    erase(pico, CONCEPT, "co_erasing", settings, progress)
    assert progress.painted == settings.steps


def test_spared_layout_steps_are_not_drawn(pico: DiffusersModel) -> None:
    with stopped(pico, CONCEPT, "all_but_one", spare_layout=0.5) as (trainer, _):
        drawn = trainer.pools["concept"].draw(200, torch.Generator().manual_seed(0), trainer.noisiest)
    assert drawn.t.max() < 500 and len(drawn.t.unique()) == 2


AS_TOLD = {"neighbours": 0, "replace": False}
"""Nothing beside what the concept says."""


def test_a_dense_change_is_no_start_for_one_of_low_rank(pico: DiffusersModel) -> None:
    settings = METHODS["esd"].settings(**SMALL | {"layers": "cross-attention-kv"})
    start = random_deltas(pico, settings.layers, 0, True)
    with pytest.raises(InvalidSettings, match=r"is full-size \(dense\), and what is trained has rank 2; choose rank 0"):
        erase(pico, CONCEPT, "esd", settings, start=start)


@pytest.mark.parametrize("rank", [2, 0])
def test_the_closed_form_start_is_the_closed_form(pico: DiffusersModel, rank: int) -> None:
    closed, _ = erase(pico, CONCEPT, "closed_form", METHODS["closed_form"].settings(rank=rank, **AS_TOLD))
    settings: Any = METHODS["esd"].settings(start="closed_form", rank=rank, layers="cross-attention")
    with pico.trainable():
        trainer = Trainer(pico, CONCEPT, METHODS["esd"], settings, Silent())
    for name in closed.deltas:
        torch.testing.assert_close(trainer.deltas[name].change(), closed.deltas[name].change(), atol=1e-6, rtol=1e-5)
    assert trainer.deltas["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"].norm() == 0


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        # ``auto`` trains the text encoder; a closed form changes cross-attention, so it would start from nothing.
        ("auto", {"start": "closed_form"}, "none of the layers that are trained"),
        ("closed_form", {"layers": "text-encoder"}, "choose layers with them"),
        ("rece", {"layers": "self-attention"}, "choose layers with them"),
        ("sage", {"erase_in": "text", "layers": "cross-attention-kv"}, 'choose layers "text-encoder"'),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_before_any_work(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, method: str, settings: dict[str, Any], message: str
) -> None:
    for work in ("predict", "encode"):
        monkeypatch.setattr(pico, work, lambda *given: pytest.fail("the work began"))
    with pytest.raises(InvalidSettings, match=message):
        erase(pico, CONCEPT, method, METHODS[method].settings(**settings))


def test_a_host_that_encodes_no_embeddings_is_refused_only_where_a_self_check_would_come(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(DiffusersModel, "encode_embeddings")
    monkeypatch.setattr(pico, "predict", lambda *given: pytest.fail("the work began"))
    for settings in ({"warm_up": 2, "steps": 3}, {"warm_up": 0, "steps": 1}):
        with pytest.raises(InvalidSettings, match="cannot encode token embeddings"):
            erase(pico, CONCEPT, "auto", METHODS["auto"].settings(**settings))
    for settings in ({"warm_up": 3, "steps": 3}, {"check_every": 0}):
        check_self_checks(pico, METHODS["auto"].settings(**settings))


def test_given_pictures_are_part_of_the_trainings_identity(pico: DiffusersModel, tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.partial"
    pictures = [ConceptPictures(latents=torch.full((2, *pico.latent_shape), value)) for value in (0.1, 0.2)]
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "co_erasing", settings_of("co_erasing"), StopAt(2), checkpoint, pictures=pictures[0])
    with pytest.raises(InvalidFile, match="another concept"):
        erase(pico, CONCEPT, "co_erasing", settings_of("co_erasing"), checkpoint=checkpoint, pictures=pictures[1])


def test_an_alternative_longer_than_the_room_around_a_point_is_cut(pico: DiffusersModel) -> None:
    """The end token stays, so that the encoder knows where the prompt ends."""
    long = " ".join(["red"] * 70)
    with stopped(pico, Concept(("ball",), long, ("a red box",)), "auto", at=50) as (trainer, step):
        state = trainer.state
        assert isinstance(state, Boundary)
        bounding = state.drawn(step)
        assert bounding is not None
        assert max(bounding.instead.ends) <= bounding.instead.context.shape[1] - 1


def test_a_point_of_another_concept_goes_where_that_one_goes(pico: DiffusersModel) -> None:
    """Where a word has had no turn yet, the point of another one stands in."""
    several = Concept.joined([Concept(("ball",), "box", ("a red house",)), Concept(("cat",), "dog")])
    with stopped(pico, several, "auto", at=50) as (trainer, step):
        state = trainer.state
        assert isinstance(state, Boundary)
        state.tensors |= {"point.word": torch.zeros_like(state.points["word"])}
        asked: list[str] = []
        rewritten = state._rewritten

        def noted(chosen: Any, instead: Any) -> Any:
            asked.extend(instead)
            return rewritten(chosen, instead)

        state._rewritten = noted  # type: ignore[method-assign]
        for _ in range(4):
            state.drawn(step)
    assert set(asked) == {"", "box"}


def test_a_training_that_wrecks_the_model_with_finite_numbers_is_told(pico: DiffusersModel) -> None:
    settings = METHODS["esd"].settings(**SMALL | {"steps": 24, "refresh": 24})
    sound = erase(pico, CONCEPT, "esd", settings)[1]
    assert not sound.notes
    wild = erase(pico, CONCEPT, "esd", replace(settings, learning_rate=1.0))[1]
    assert wild.notes == ["The training moved away from its goal: its loss grew; lower the learning rate"]


def test_a_loss_may_name_its_terms_as_it_likes(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    esd = METHODS["esd"]
    assert esd.loss is not None
    own = replace(esd, name="own", loss=lambda s, step: {"gone": esd.loss(s, step)["erase"]})  # type: ignore[misc]
    settings = esd.settings(**SMALL | {"steps": 20, "learning_rate": 1.0})
    for method, told in ((own, False), (replace(own, erasing="gone"), True)):
        monkeypatch.setitem(METHODS, "own", method)
        _, history = erase(pico, CONCEPT, "own", settings)
        assert len(history.losses) == 20 and bool(history.notes) is told


def test_what_nothing_kept_is_not_said_to_be_kept(pico: DiffusersModel) -> None:
    settings = settings_of("leco")
    assert erase(pico, Concept(("ball",)), "leco", settings)[0].manifest.keep == ()
    asked = Concept(("ball",), None, ("a red box",))
    assert erase(pico, asked, "leco", settings)[0].manifest.keep == ("a red box",)


@pytest.mark.parametrize("name", ["closed_form", "all_but_one"])
def test_prompts_of_the_tools_own_fit_a_short_text_encoder(pico: DiffusersModel, name: str) -> None:
    """The concept fits, but no template around it, and few of the everyday prompts."""
    tokenizer = copy(pico.tokenizers[0])
    tokenizer.model_max_length = 11
    short = DiffusersModel(pico.unet, pico.text_encoders, [tokenizer], pico.schedule)
    settings = settings_of("all_but_one") if name == "all_but_one" else METHODS[name].settings()
    concept = Concept(("ball of the cat in the red box",))
    assert has_room(short, concept.name) and not has_room(short, f"the {concept.name} in")
    assert erase(short, concept, name, settings)[0].deltas.changed()
