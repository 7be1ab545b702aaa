"""Efforts, and trainings that run out of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stopping import StopAt

from erasure_core import METHODS, Concept, Report, effort, erase, memory
from erasure_core.cli.main import main
from erasure_core.delta import weight_of
from erasure_core.effort import EFFORTS, Effort, effort_of, foreseen, needed, not_defaults, plan
from erasure_core.errors import Cancelled, InvalidSettings, OtherTraining, OutOfMemory
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import TrainingSettings
from erasure_core.methods.esd import EsdSettings
from erasure_core.progress import Silent
from erasure_core.sampling import scaled_sides
from proving_ground.variants import VARIANTS

SMALL = EsdSettings(replace=False, rank=2, steps=4, trajectories=5, trajectory_steps=2, batch=4)
CONCEPT = Concept(("ball",), None, ("a red box",))


class Listening(Silent):
    def __init__(self) -> None:
        self.stages: list[str] = []

    def update(self, report: Report) -> None:
        self.stages.append(report.stage)


def test_efforts_order_the_work_and_balanced_is_the_default(pico: DiffusersModel) -> None:
    settings = EsdSettings()
    plans = {effort: plan(effort, settings, pico, 2**40) for effort in EFFORTS}
    assert plans["balanced"].settings == settings
    assert plans["fast"].settings.steps < settings.steps < plans["thorough"].settings.steps
    fast = plans["fast"].settings
    assert fast.refresh >= fast.steps, "the pool is drawn once"
    assert fast.trajectories == 2 * settings.trajectories, "and holds as many as were drawn in two"
    once = plan("fast", replace(settings, steps=200), pico).settings
    assert once.trajectories == settings.trajectories, "where they were drawn once anyway, there are no more of them"
    assert all(effort in found.sentence for effort, found in plans.items())
    with pytest.raises(InvalidSettings, match="choose from fast"):
        plan("lazy", settings, pico)


def test_what_the_user_gave_no_effort_changes(pico: DiffusersModel) -> None:
    settings = EsdSettings(steps=40, trajectories=7)
    fast = plan("fast", settings, pico, asked={"steps"}).settings
    assert (fast.steps, fast.refresh) == (40, 40) and fast.trajectories == 7
    thorough = plan("thorough", settings, pico, asked={"trajectories"}).settings
    assert (thorough.steps, thorough.trajectories) == (80, 7)


def test_an_effort_is_of_methods_that_train() -> None:
    esd, rece = METHODS["esd"], METHODS["rece"]
    assert effort_of(None, esd) == effort_of(None, rece) == Effort()
    assert effort_of("fast", esd, ["steps"]) == Effort("fast", frozenset({"steps"}))
    with pytest.raises(InvalidSettings, match="The field is for methods that train, and rece solves its equations"):
        effort_of("balanced", rece, called="The field")
    with pytest.raises(InvalidSettings, match="no effort 'lazy'"):
        effort_of("lazy", esd)
    assert not not_defaults(EsdSettings()) and not_defaults(EsdSettings(steps=7, seed=1)) == {"steps", "seed"}


def test_an_erasure_is_made_with_an_effort_and_notes_what_it_picked(pico: DiffusersModel) -> None:
    few = Effort("fast", not_defaults(SMALL) - {"steps"})
    erasure, history = erase(pico, CONCEPT, "esd", SMALL, effort=few)
    assert len(history.losses) == erasure.manifest.settings["steps"] == SMALL.steps // 2
    assert history.notes == [plan("fast", SMALL, pico, asked=few.asked).sentence]
    _, usual = erase(pico, CONCEPT, "esd", SMALL)
    assert usual.notes == []


def test_what_low_vram_picked_goes_on_as_it_was_whatever_is_free_by_then(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Picked anew it would be another training, and nothing smaller than the one that was stopped is the same."""
    halved = replace(SMALL, checkpointing=True, batch=2, accumulate=2)
    enough, wanted = int(needed(halved, pico) / effort.USABLE) + 1, Effort("low-vram")
    for state, later in (("less", 0), ("more", 2**40)):
        monkeypatch.setattr(effort, "free_memory", lambda device: enough)
        with pytest.raises(Cancelled):
            erase(pico, CONCEPT, "esd", SMALL, StopAt(2), tmp_path / state, effort=wanted)
        monkeypatch.setattr(effort, "free_memory", lambda device, free=later: free)
        found, history = erase(pico, CONCEPT, "esd", SMALL, None, tmp_path / state, effort=wanted)
        assert [found.manifest.settings[name] for name in ("batch", "accumulate", "picture_scale")] == [2, 2, 1.0]
        assert len(history.losses) == SMALL.steps and "as in the training that is gone on with" in history.notes[0]


def test_batches_are_summed_up_as_far_as_a_setting_may_say(pico: DiffusersModel) -> None:
    small = plan("low-vram", EsdSettings(batch=8, accumulate=16), pico, 0).settings
    assert (small.batch, small.accumulate) == (1, 64)


def test_low_vram_gives_up_time_first_and_picture_size_last(pico: DiffusersModel) -> None:
    settings = EsdSettings(batch=4)
    roomy = plan("low-vram", settings, pico, 2**40).settings
    assert roomy == settings
    whole = needed(settings, pico)
    steps = [plan("low-vram", settings, pico, int(whole / share)).settings for share in (0.5, 2, 5, 20, 40)]
    assert [s.checkpointing for s in steps] == [False, True, True, True, True]
    assert [s.batch * s.accumulate for s in steps] == [4, 4, 4, 4, 4], "a step sees as many states as before"
    assert [s.picture_scale for s in steps[:3]] == [1.0] * 3 and steps[-1].picture_scale < 1.0
    assert [needed(s, pico) for s in steps] == sorted((needed(s, pico) for s in steps), reverse=True)
    unknown = plan("low-vram", settings, pico, 0)
    assert (unknown.settings.batch, unknown.settings.max_batch) == (1, 1)
    assert "1 at a time (4 batches a step)" in unknown.sentence


def refusing(monkeypatch: pytest.MonkeyPatch, above: int) -> list[int]:
    """A device that has no memory to train on more than ``above`` latents at once, checkpointing or not."""
    forward, refused = DiffusersModel.predict, []

    def scarce(self: DiffusersModel, latents: torch.Tensor, *rest: object) -> torch.Tensor:
        if torch.is_grad_enabled() and len(latents) > above:
            refused.append(len(latents))
            raise torch.OutOfMemoryError("acted")
        return forward(self, latents, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    return refused


def test_a_training_that_does_not_fit_is_stepped_down(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, progress = replace(SMALL, checkpointing=True), Listening()
    refused = refusing(monkeypatch, above=4)
    erasure, history = erase(pico, CONCEPT, "esd", settings, progress, tmp_path / "state")
    assert refused == [8] and len(history.losses) == 4
    assert (erasure.manifest.settings["batch"], erasure.manifest.settings["accumulate"]) == (2, 2)
    assert "memory is short, going on with smaller pieces" in progress.stages


def test_what_was_stepped_down_goes_on_as_it_was(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, state = replace(SMALL, checkpointing=True), tmp_path / "state"
    refusing(monkeypatch, above=4)
    expected, _ = erase(pico, CONCEPT, "esd", settings)
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "esd", settings, StopAt(2), state)
    found, history = erase(pico, CONCEPT, "esd", settings, None, state)
    assert found.manifest.settings["batch"] == 2 and len(history.losses) == SMALL.steps
    for a, b in zip(expected.deltas.parameters(), found.deltas.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "esd", settings, StopAt(2), tmp_path / "other")
    with pytest.raises(OtherTraining, match="another concept"):
        erase(pico, CONCEPT, "esd", replace(settings, rank=1), None, tmp_path / "other")


def test_what_surely_does_not_fit_is_stepped_down_before_it_is_tried(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(effort, "free_memory", lambda device: needed(replace(SMALL, checkpointing=True), pico) // 2)
    refused, progress, state = refusing(monkeypatch, above=4), Listening(), tmp_path / "state"
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "esd", SMALL, StopAt(2), state)
    found, history = erase(pico, CONCEPT, "esd", SMALL, progress, state)
    assert not refused and len(history.losses) == SMALL.steps and effort.SHORT in progress.stages
    assert [found.manifest.settings[name] for name in ("checkpointing", "batch", "accumulate")] == [True, 2, 2]
    # A training that was begun where there was more memory keeps its batch.
    assert foreseen(SMALL, pico, True, Silent()) == replace(SMALL, checkpointing=True)
    # What perhaps fits is tried, and what does not tell its memory.
    for free in (needed(SMALL, pico), None):
        monkeypatch.setattr(effort, "free_memory", lambda device, free=free: free)
        assert foreseen(SMALL, pico, False, Silent()) == SMALL


def test_computing_activations_again_changes_no_bit_of_the_result(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = erase(pico, CONCEPT, "esd", SMALL)
    forward, tried = DiffusersModel.predict, []

    def scarce(self: DiffusersModel, *arguments: object) -> torch.Tensor:
        if torch.is_grad_enabled():
            tried.append(0)
            if len(tried) == 1:
                raise torch.OutOfMemoryError("acted")
        return forward(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    found, _ = erase(pico, CONCEPT, "esd", SMALL)
    assert found.manifest.settings["checkpointing"]
    for a, b in zip(expected.deltas.parameters(), found.deltas.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_it_is_told_when_nothing_smaller_is_left(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refusing(monkeypatch, above=0)
    with pytest.raises(OutOfMemory, match="smaller pictures, a lower rank or fewer layers") as caught:
        erase(pico, CONCEPT, "esd", SMALL)
    for tried_or_absent in ("batch", "again", "go on", "CPU", "--"):
        assert tried_or_absent not in str(caught.value)
    # As it is, computing again, two and one at a time, and then with smaller pictures.
    assert refused == [8, 8, 4, 2, 2, 2]


def test_training_on_smaller_pictures(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, sides = DiffusersModel.predict, set()

    def seen(self: DiffusersModel, latents: torch.Tensor, *rest: object) -> torch.Tensor:
        sides.add(tuple(latents.shape[1:]))
        return forward(self, latents, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusersModel, "predict", seen)
    monkeypatch.setattr(pico, "latent_shape", (4, 32, 16))
    erase(pico, CONCEPT, "esd", replace(SMALL, steps=1, picture_scale=0.5))
    assert sides == {(4, 16, 8)} and pico.latent_shape == (4, 32, 16)


def test_the_command_line_says_what_it_picked(
    pico_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--model", str(pico_folders["sd1"]), "--concept", "ball", "--out", str(tmp_path / "ball.safetensors")]
    quick = [
        "--method",
        "esd",
        "--steps",
        "2",
        "--trajectories",
        "4",
        "--trajectory-steps",
        "2",
        "--batch",
        "1",
        "--rank",
        "2",
    ]
    assert main(["erase", *out, *quick, "--effort", "low-vram"]) == 0
    assert "low-vram: with " in capsys.readouterr().err


def test_more_that_is_trained_or_a_wider_network_is_stepped_down_where_less_fits(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = replace(SMALL, rank=1, layers="full")
    free = int(needed(fits, pico) / effort.USABLE) + 1
    assert not plan("low-vram", fits, pico, free).settings.checkpointing
    for more in (replace(fits, rank=9), replace(fits, rank=0)):
        assert plan("low-vram", more, pico, free).settings.checkpointing
    layers = pico.layers()
    first = weight_of(layers["unet.conv_in"])
    wider = torch.nn.Conv2d(first.shape[1], 2 * len(first), first.shape[2:])
    monkeypatch.setattr(pico, "layers", lambda: layers | {"unet.conv_in": wider})
    assert plan("low-vram", fits, pico, free).settings.checkpointing


def test_a_containers_limit_counts_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The computer's own figures say nothing of it, and the system ends a program that takes more."""
    (most, used), (old_most, old_used) = places = [
        (tmp_path / f"{version}.max", tmp_path / f"{version}.current") for version in (2, 1)
    ]
    assert memory._left_in_container(places) is None
    old_most.write_text("1000\n")
    old_used.write_text("300\n")
    assert memory._left_in_container(places) == 700
    most.write_text("max\n")
    used.write_text("300\n")
    assert memory._left_in_container(places) is None, "no limit"
    most.write_text("200\n")
    assert memory._left_in_container(places) == 0
    monkeypatch.setattr(memory, "_left_in_container", lambda: 12345)
    if Path("/proc/meminfo").exists():
        assert memory.free_memory(torch.device("cpu")) == 12345


def test_smaller_pictures_are_never_larger_and_never_nothing(pico: DiffusersModel) -> None:
    assert scaled_sides((4, 4, 4), 0.5) == (4, 4) and scaled_sides((4, 6, 10), 0.75) == (6, 8)
    assert scaled_sides((4, 20, 12), 1.0) == (20, 12) and scaled_sides((4, 64, 96), 0.5) == (32, 48)
    assert needed(EsdSettings(picture_scale=0.1), pico) > 0
    assert plan("low-vram", EsdSettings(picture_scale=0.1), pico, 2**40).settings.max_batch >= 1


def test_twice_as_much_is_at_most_what_is_allowed(pico: DiffusersModel) -> None:
    assert plan("thorough", EsdSettings(batch=200, steps=60_000), pico).settings.batch == 256


def test_the_bench_measures_auto_with_the_effort_fast(pico: DiffusersModel) -> None:
    settings = METHODS["auto"].settings()
    assert isinstance(settings, TrainingSettings)
    assert plan("fast", settings, pico).settings == replace(settings, **VARIANTS["auto, fast"].settings)
