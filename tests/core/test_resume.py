"""Interrupted trainings: whatever stops them, the continued run ends with the same bytes as an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pico import write_pico
from stopping import StopAt

from erasure_core import Concept, Report, Silent, erase, write_erasure
from erasure_core.checkpoint import _from_table, _table, checkpoint_path
from erasure_core.errors import Cancelled, InvalidFile, OutOfMemory, TrainingFailed
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.esd import EsdSettings
from erasure_core.safe_files import read_tensors, write_tensors

CONCEPT = Concept(("ball",), None, ("a red box",))
SETTINGS = EsdSettings(
    replace=False, rank=2, steps=10, refresh=4, trajectories=6, trajectory_steps=3, batch=2, driver="training"
)


class HostInterrupt(BaseException):
    """As newer ComfyUI raises it: not an ``Exception``."""


class RaiseAt(Silent):
    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, report: Report) -> None:
        if report.stage == "training" and report.step == self.step:
            raise HostInterrupt


def all_bits(model: DiffusersModel) -> str:
    """Hash of every parameter and buffer, bit by bit."""
    digest = hashlib.sha256()
    for module in (model.unet, *model.text_encoders):
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def finished(
    model: DiffusersModel, path: Path, checkpoint: Path | None = None, settings: EsdSettings = SETTINGS
) -> bytes:
    erasure, _ = erase(model, CONCEPT, "esd", settings, checkpoint=checkpoint)
    write_erasure(path, erasure, model)
    return path.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(pico_models: dict[str, DiffusersModel], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a training that nothing stopped."""
    return finished(pico_models["sd1"], tmp_path_factory.mktemp("undisturbed") / "ball.safetensors")


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_cancel_and_resume_ends_with_the_same_bytes(
    pico: DiffusersModel, tmp_path: Path, undisturbed: bytes, step: int
) -> None:
    path, weights = tmp_path / "ball.safetensors", all_bits(pico)
    checkpoint = checkpoint_path(path)
    with pytest.raises(Cancelled, match=f"step {step} of 10"):
        erase(pico, CONCEPT, "esd", SETTINGS, StopAt(step), checkpoint)
    assert checkpoint.exists()
    assert finished(pico, path, checkpoint) == undisturbed
    assert all_bits(pico) == weights


def test_a_hosts_own_interrupt_keeps_the_work(pico: DiffusersModel, tmp_path: Path, undisturbed: bytes) -> None:
    path = tmp_path / "ball.safetensors"
    with pytest.raises(HostInterrupt):
        erase(pico, CONCEPT, "esd", SETTINGS, RaiseAt(6), checkpoint_path(path))
    assert finished(pico, path, checkpoint_path(path)) == undisturbed
    assert not any(layer._forward_hooks for layer in pico.layers().values())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:4]
import test_resume as t
from erasure_core.hosts.diffusers import DiffusersModel

class KillAt(t.Silent):
    def update(self, report):
        if report.stage == "training" and report.step == int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)

t.erase(DiffusersModel.load(Path(sys.argv[4])), t.CONCEPT, "esd", t.SETTINGS, KillAt(), Path(sys.argv[6]), save_every=0)
"""


@pytest.mark.parametrize("step", [2, 7])
def test_kill_9_and_resume_ends_with_the_same_bytes(
    pico: DiffusersModel, pico_folders: dict[str, Path], tmp_path: Path, undisturbed: bytes, step: int
) -> None:
    path, here = tmp_path / "ball.safetensors", Path(__file__)
    checkpoint = checkpoint_path(path)
    arguments = [*here.parents[:3], pico_folders["sd1"], step, checkpoint]
    process = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, check=False)
    assert process.returncode == -9, process.stderr.decode()[-2000:]
    assert finished(pico, path, checkpoint) == undisturbed


def test_a_checkpoint_of_another_training_is_refused(pico: DiffusersModel, tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.partial"
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "esd", SETTINGS, StopAt(2), checkpoint)
    with pytest.raises(InvalidFile, match="another concept, method, settings or model"):
        erase(pico, Concept(("cat",)), "esd", SETTINGS, checkpoint=checkpoint)


def test_damaged_checkpoints_are_refused(pico: DiffusersModel, tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.partial"
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "esd", SETTINGS, StopAt(2), checkpoint)
    content = checkpoint.read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-1], b"x" * 500):
        checkpoint.write_bytes(damaged)
        with pytest.raises(InvalidFile):
            erase(pico, CONCEPT, "esd", SETTINGS, checkpoint=checkpoint)


def test_states_that_were_tampered_with_are_refused(pico: DiffusersModel, tmp_path: Path) -> None:
    """Sound files of the right training, with an entry that cannot be."""
    checkpoint = tmp_path / "x.partial"
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "esd", SETTINGS, StopAt(2), checkpoint)
    tensors, metadata = read_tensors(checkpoint)
    pool = next(key for key in tensors if key.startswith("pool.") and key.endswith(".states"))
    changes: list[tuple[str, object]] = [
        ("delta.0", None), ("delta.0", torch.zeros(3)), ("adam.0.exp_avg", None), (pool, None),
        ("adam.x.y", torch.zeros(1)), ("adam.0", torch.zeros(1)), ("step", "soon"), ("step", None),
        ("history", "[]"), ("history", "null"), ("history", "{"), ("loss_scale", "much"),
    ]  # fmt: skip
    for name, value in changes:
        into = metadata if name in metadata else tensors
        changed = {key: old for key, old in into.items() if key != name} | ({} if value is None else {name: value})
        write_tensors(checkpoint, *((tensors, changed) if into is metadata else (changed, metadata)))
        with pytest.raises(InvalidFile, match=r"x\.partial is damaged"):
            erase(pico, CONCEPT, "esd", SETTINGS, checkpoint=checkpoint)


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_state(
    pico: DiffusersModel, tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ball.safetensors"
    checkpoint = checkpoint_path(path)
    original, calls = DiffusersModel.predict, []

    def broken(self: DiffusersModel, *args: object) -> torch.Tensor:
        calls.append(1)
        return original(self, *args) * (float("nan") if len(calls) > 25 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusersModel, "predict", broken)
    with pytest.raises(TrainingFailed, match=r"The loss \(erase\) became nan at step \d+.*Lower the learning rate"):
        erase(pico, CONCEPT, "esd", SETTINGS, None, checkpoint, save_every=0)
    monkeypatch.undo()
    assert checkpoint.exists()
    assert finished(pico, path, checkpoint) == undisturbed


def test_a_state_that_cannot_be_saved_stops_nothing_and_hides_nothing(pico: DiffusersModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    nowhere = tmp_path / "file" / "x.partial"
    notes: list[str] = []

    class Listening(RaiseAt):
        def update(self, report: Report) -> None:
            notes.append(report.note)
            super().update(report)

    erase(pico, CONCEPT, "esd", SETTINGS, Listening(99), nowhere, save_every=0)
    assert any(note.startswith("The state to go on from is not saved: ") for note in notes)
    assert any("cannot be written" in note for note in notes)
    with pytest.raises(HostInterrupt):
        erase(pico, CONCEPT, "esd", SETTINGS, RaiseAt(3), nowhere)


def test_too_little_memory_inside_the_optimiser_saves_no_torn_state(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There some weights have moved and others not."""
    state, step = tmp_path / "x.partial", torch.optim.AdamW.step
    calls = []

    def short(optimizer: torch.optim.AdamW, *rest: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            optimizer.param_groups[0]["params"][0].data.add_(1.0)
            raise torch.OutOfMemoryError("acted")
        return step(optimizer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", short)
    smallest = replace(SETTINGS, batch=1, checkpointing=True, picture_scale=0.5)
    with pytest.raises(OutOfMemory):
        erase(pico, CONCEPT, "esd", smallest, checkpoint=state, save_every=0.0)
    assert read_tensors(state)[1]["step"] == "2", "the last whole one"


def test_the_losses_of_a_long_training_can_be_read_again() -> None:
    """Headers are read up to 16 MiB; a training has at most 100,000 steps."""
    terms = dict.fromkeys(("surgical", "drift", "keep", "text", "erased text"), 0.12345678901234567)
    losses = [{"surgical": 0.1}] + [terms] * 99_999
    table = json.loads(json.dumps(_table(losses)))
    assert _from_table(table) == losses and len(json.dumps(table)) < 2**24 - 2**20


def test_a_finished_training_can_be_written_again_without_training(
    pico: DiffusersModel, tmp_path: Path, undisturbed: bytes
) -> None:
    """If only the result cannot be written (disk full), the work is not lost."""
    path = tmp_path / "ball.safetensors"
    assert finished(pico, path, checkpoint_path(path)) == undisturbed

    class NoTraining(Silent):
        def update(self, report: Report) -> None:
            assert report.stage not in ("training", "trajectories")

    erasure, history = erase(pico, CONCEPT, "esd", SETTINGS, NoTraining(), checkpoint_path(path))
    path.unlink()
    write_erasure(path, erasure, pico)
    assert path.read_bytes() == undisturbed and len(history.losses) == SETTINGS.steps


def test_settings_that_only_cost_memory_may_change_on_resume(pico: DiffusersModel, tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.partial"
    with pytest.raises(Cancelled):
        erase(pico, CONCEPT, "esd", SETTINGS, StopAt(2), checkpoint)
    frugal = replace(SETTINGS, checkpointing=True, max_batch=2)
    _, history = erase(pico, CONCEPT, "esd", frugal, checkpoint=checkpoint)
    assert len(history.losses) == SETTINGS.steps


def test_resume_is_exact_with_a_text_encoder_of_real_width(tmp_path: Path) -> None:
    """The bits of a wide encoding depend on the batch it is made in, with several threads."""
    folder = write_pico(tmp_path / "model", "sd1", text_width=768)
    model, path = DiffusersModel.load(folder), tmp_path / "ball.safetensors"
    settings = replace(SETTINGS, steps=2, refresh=1, trajectories=3, trajectory_steps=1, contexts=2, neighbours=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        undisturbed = finished(model, path, settings=settings)
        with pytest.raises(Cancelled):
            erase(model, CONCEPT, "esd", settings, StopAt(1), checkpoint_path(path))
        assert finished(model, path, checkpoint_path(path), settings) == undisturbed
    finally:
        torch.set_num_threads(threads)
