"""Faults of the machine: full disks, kills at any time, other processes, folders that may only be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from erasure_core import Concept, Report, erase, write_erasure
from erasure_core.checkpoint import checkpoint_path
from erasure_core.cli.main import main
from erasure_core.errors import OutOfMemory, OutputError
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.esd import EsdSettings
from erasure_core.progress import Silent
from erasure_core.safe_files import exclusive

CONCEPT = Concept(("ball",), None, ("a red box",))
QUICK = ["--steps", "6", "--rank", "2", "--trajectories", "4", "--trajectory-steps", "3", "--batch", "2"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(pico_folders: dict[str, Path], tiny_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tiny_disk / "ball.safetensors"
    arguments = ["--model", str(pico_folders["sd1"]), "--concept", "ball", "--out", str(out)]
    assert main(["erase", *arguments, *QUICK, "--rank", "0"]) == 5
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot be written (No space left on device)" in error
    assert list(tiny_disk.iterdir()) == [], "nothing half-written"


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:4]
import torch
torch.set_num_threads(1)  # a forked child may not use its parent's threads
from erasure_core import Concept, erase, write_erasure
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.esd import EsdSettings

model = DiffusersModel.load(Path(sys.argv[4]))
folder = Path(sys.argv[5])
settings = EsdSettings(rank=2, steps=200, trajectories=5, trajectory_steps=3, batch=1, refresh=30)

def finish(name):
    out = folder / name / "ball.safetensors"
    checkpoint = out.with_name("ball.partial")
    erasure, _ = erase(model, Concept(("ball",)), "esd", settings, None, checkpoint, save_every=0)
    write_erasure(out, erasure, model)

finish("whole")
rng, kills = random.Random(0), 0
while kills < 20:
    child = os.fork()
    if child == 0:
        finish("killed")
        os._exit(0)
    time.sleep(rng.uniform(0.0, 0.25))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        break
    kills += 1
finish("killed")
print(kills)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_twenty_kills_at_random_times_cost_no_bit(pico_folders: dict[str, Path], tmp_path: Path) -> None:
    here = Path(__file__)
    arguments = map(str, [*here.parents[:3], pico_folders["sd1"], tmp_path])
    done = subprocess.run([sys.executable, "-c", KILLS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 20, "the training must be long enough for twenty kills"
    whole, killed = ((tmp_path / name / "ball.safetensors").read_bytes() for name in ("whole", "killed"))
    assert killed == whole


def test_a_second_process_on_the_same_output_is_refused(
    pico_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ball.safetensors"
    arguments = ["erase", "--model", str(pico_folders["sd1"]), "--concept", "ball", "--out", str(out), *QUICK]
    with exclusive(out):
        assert main(arguments) == 5
    assert "is being made by another process" in capsys.readouterr().err
    (tmp_path / ".ball.safetensors.partial.0123abcd.part").write_text("left by a killed process")
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ball.safetensors"]


def test_a_model_folder_that_may_only_be_read(pico_folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(pico_folders["sd1"], folder)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    arguments = ["--model", str(folder), "--concept", "ball", "--out", str(tmp_path / "ball.safetensors")]
    assert main(["erase", *arguments, *QUICK]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_too_little_memory_keeps_the_work_and_says_what_to_do(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EsdSettings(rank=2, steps=6, trajectories=6, trajectory_steps=3, batch=2)
    path = tmp_path / "ball.safetensors"
    undisturbed, _ = erase(pico, CONCEPT, "esd", settings)
    original = DiffusersModel.predict

    class Counting(Silent):
        done = 0

        def update(self, report: Report) -> None:
            if report.stage == "training":
                self.done = report.step

    progress = Counting()

    def scarce(self: DiffusersModel, *args: object) -> torch.Tensor:
        if progress.done == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    with pytest.raises(OutOfMemory, match="--checkpointing"):
        erase(pico, CONCEPT, "esd", settings, progress, checkpoint_path(path))
    monkeypatch.undo()
    resumed, history = erase(pico, CONCEPT, "esd", settings, checkpoint=checkpoint_path(path))
    assert len(history.losses) == 6
    for a, b in zip(undisturbed.deltas.parameters(), resumed.deltas.parameters(), strict=True):
        assert torch.equal(a, b)


def test_drawing_trajectories_steps_down_when_memory_is_short(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EsdSettings(rank=2, steps=2, trajectories=6, trajectory_steps=3, batch=2, max_batch=16)
    expected, _ = erase(pico, CONCEPT, "esd", settings)
    original, refused = DiffusersModel.predict, []

    def scarce(self: DiffusersModel, latents: torch.Tensor, *args: object) -> torch.Tensor:
        if len(latents) > 4:
            refused.append(len(latents))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, latents, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    found, _ = erase(pico, CONCEPT, "esd", settings)
    assert refused
    for a, b in zip(expected.deltas.parameters(), found.deltas.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_an_unwritable_place_is_an_output_error(pico: DiffusersModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_erasure(tmp_path / "file" / "e.safetensors", erase(pico, CONCEPT, "closed_form")[0], pico)
