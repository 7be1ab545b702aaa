"""Faults of the machine: full disks, kills at any time, other processes, folders that may only be read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch
from pico import write_checkpoint, write_pico
from PIL import Image
from random_changes import as_erasure, random_deltas

from erasure_core import Concept, Report, erase, read_erasure, safe_files, write_erasure
from erasure_core.checkpoint import checkpoint_path
from erasure_core.cli.main import main
from erasure_core.errors import DeviceOutOfMemory, OutOfMemory, OutputError
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.esd import EsdSettings
from erasure_core.progress import Silent
from erasure_core.safe_files import exclusive, read_tensors, write_files, write_tensors

CONCEPT = Concept(("ball",), None, ("a red box",))
QUICK = [
    "--method",
    "esd",
    "--no-replace",
    "--steps",
    "6",
    "--rank",
    "2",
    "--trajectories",
    "4",
    "--trajectory-steps",
    "3",
    "--batch",
    "2",
]


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, while the test runs."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # lazily: a model read from there may still be mapped


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    yield from mounted(tmp_path / "disk", "size=64k")


@pytest.fixture
def protected_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that even root cannot write to, once ``protect`` is called."""
    yield from mounted(tmp_path / "protected", "size=64m")


def protect(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_full_disk(pico_folders: dict[str, Path], tiny_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tiny_disk / "ball.safetensors"
    arguments = ["--model", str(pico_folders["sd1"]), "--concept", "ball", "--out", str(out)]
    assert main(["erase", *arguments, *QUICK, "--rank", "0"]) == 5
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot be written (No space left on device)" in error
    assert list(tiny_disk.iterdir()) == [], "nothing half-written"


def test_full_disk_for_every_other_command(
    pico: DiffusersModel, tmp_path: Path, tiny_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = DiffusersModel.load(write_pico(tmp_path / "model", "sd1", real_vocabulary=True))
    model = str(write_checkpoint(tmp_path / "model.safetensors", folder))
    file = str(tmp_path / "ball.safetensors")
    write_erasure(Path(file), as_erasure(folder, random_deltas(folder, "full")), folder)
    out = ["--model", model, "--out", str(tiny_disk / "new.safetensors")]
    painting = ["--prompt", "a", "--count", "16", "--steps", "1", "--size", "128"]
    given = tmp_path / "given"
    given.mkdir()
    for number in range(8):
        Image.effect_noise((128, 128), 90).convert("RGB").save(given / f"{number}.png")
    purifying = ["--picture", str(given), "--caption", "a ball", "--steps", "1", "--size", "128"]
    looking = ["--model", model, "--erasure", file, "--out", str(tiny_disk)]
    for command in (
        ["merge", file, file, *out],
        ["convert", file, "--to", "dense", *out],
        ["bake", "--erasure", file, *out],
        ["generate", "--model", model, *painting, "--out", str(tiny_disk)],
        ["purify", *looking, *purifying],
    ):
        assert main(command) == 5, command[0]
        assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
        left = [path.name for path in tiny_disk.iterdir()]
        assert all(name.endswith(".png") for name in left), "whole pictures may stay, halves of files not"
        for name in left:
            (tiny_disk / name).unlink()
    for command in (
        ["explore", *looking, "--calls", "300"],
        ["report", *looking, "--budget", "1s", "--states", "2"],
    ):
        assert main(command) == 5, command[0]
        assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
        assert list(tiny_disk.iterdir()) == [], "what belongs together is there as a whole or not at all"


def test_files_that_belong_together_are_written_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for names in (("old", "a", "old/x"), ("a", "b", "old/x")):
        with pytest.raises(OutputError, match="cannot be written"):
            write_files(tmp_path, dict.fromkeys(names, b"new"))
        assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_bytes() == b"old"
    write_files(tmp_path, {"a": b"1", "old": b"2"})
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "old").read_bytes()) == (b"1", b"2")


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
settings = EsdSettings(
    replace=False, rank=2, steps=40, trajectories=5, trajectory_steps=3, batch=1, refresh=30, neighbours=0
)

def finish(name):
    out = folder / name / "ball.safetensors"
    checkpoint = out.with_name("ball.partial")
    erasure, _ = erase(model, Concept(("ball",), None, ("a red box",)), "esd", settings, None, checkpoint, save_every=0)
    write_erasure(out, erasure, model)

started = time.monotonic()
finish("whole")
longest = (time.monotonic() - started) / 16  # on average twenty kills leave a third of the way to go, on any machine
rng, kills = random.Random(0), 0
while kills < 20:
    child = os.fork()
    if child == 0:
        finish("killed")
        os._exit(0)
    time.sleep(rng.uniform(0.0, longest))
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


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from erasure_core.safe_files import exclusive, write_files

with exclusive(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_on_the_same_output_is_refused_until_the_first_is_gone(
    pico_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ball.safetensors"
    arguments = ["erase", "--model", str(pico_folders["sd1"]), "--concept", "ball", "--out", str(out), *QUICK]
    code = [sys.executable, "-c", HOLD, str(Path(__file__).parents[2]), str(out)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert main(arguments) == 5
        assert "is being made by another process" in capsys.readouterr().err
        other.kill()
    (tmp_path / ".ball.safetensors.partial.0123abcd.part").write_text("left by the killed process")
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ball.safetensors"]


def test_two_processes_at_once_end_with_one_whole_file(pico_folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "ball.safetensors"
    command = [sys.executable, "-m", "erasure_core", "erase", "--model", str(pico_folders["sd1"]), "--concept", "ball"]
    command += ["--out", str(out), *QUICK]
    root = Path(__file__).parents[2]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ends = sorted((p.communicate()[1].decode(), p.returncode) for p in both)
    assert sorted(code for _, code in ends) in ([0, 5],), ends
    refused = next(text for text, code in ends if code == 5)
    assert "being made by another process" in refused or "exists already" in refused
    assert [path.name for path in tmp_path.iterdir()] == ["ball.safetensors"]
    assert read_erasure(out).manifest is not None


def test_a_lock_that_was_removed_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, the first process ends, and a third one makes the lock anew."""
    out, lock = tmp_path / "x.safetensors", tmp_path / ".x.safetensors.lock"
    original, seen = safe_files._lock, []

    def late(file: IO[str]) -> None:
        seen.append(os.fstat(file.fileno()).st_ino)
        if len(seen) == 1:
            lock.unlink()
            lock.touch()
        original(file)

    monkeypatch.setattr(safe_files, "_lock", late)
    with exclusive(out):
        assert len(seen) == 2 and lock.stat().st_ino == seen[1] != seen[0]
    assert list(tmp_path.iterdir()) == []


def test_windows_removes_no_file_that_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, opened = safe_files._locked, []

    def locked(path: Path, lock: Path) -> IO[str]:
        opened.append(original(path, lock))
        return opened[0]

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if not opened[0].closed:
            raise PermissionError(13, "[WinError 32] The process cannot access the file", str(path))
        os.unlink(path)

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=lambda *how: None))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(safe_files, "_locked", locked)
    monkeypatch.setattr(Path, "unlink", unlink)
    with exclusive(tmp_path / "x.safetensors"):
        assert [path.name for path in tmp_path.iterdir()] == [".x.safetensors.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_removed_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "held by a virus scanner", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with exclusive(tmp_path / "x.safetensors"):
            pass
    with exclusive(tmp_path / "x.safetensors"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_on_windows_what_is_read_does_not_hold_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is mapped into memory can neither be replaced nor removed there."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {})
    monkeypatch.setattr(sys, "platform", "win32")
    tensors, _ = read_tensors(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert torch.equal(tensors["a"], torch.ones(3))


def test_a_model_folder_that_may_only_be_read(
    pico_folders: dict[str, Path], protected_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pico_folders["sd1"], protected_disk / "model")
    protect(protected_disk)
    with pytest.raises(OSError, match="Read-only"):
        (protected_disk / "probe").touch()
    base = ["erase", "--model", str(protected_disk / "model"), "--concept", "ball", *QUICK, "--out"]
    assert main([*base, str(tmp_path / "ball.safetensors")]) == 0
    capsys.readouterr()
    assert main([*base, str(protected_disk / "ball.safetensors")]) == 5
    assert "cannot be written (Read-only file system)" in capsys.readouterr().err
    assert main([*base, str(protected_disk / "new" / "ball.safetensors")]) == 5
    with pytest.raises(OutputError, match="Read-only file system"), exclusive(protected_disk / "ball.safetensors"):
        pass


class Listening(Silent):
    """Notes the training steps that are done."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def update(self, report: Report) -> None:
        if report.stage == "training":
            self.steps.append(report.step)


def test_too_little_memory_keeps_the_work_and_says_what_to_do(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the smallest pieces there are, with memory that becomes too little after three steps."""
    settings = EsdSettings(
        replace=False,
        rank=2,
        steps=6,
        trajectories=6,
        trajectory_steps=3,
        batch=1,
        checkpointing=True,
        picture_scale=0.5,
    )
    state = checkpoint_path(tmp_path / "ball.safetensors")
    undisturbed, _ = erase(pico, CONCEPT, "esd", settings)
    original = DiffusersModel.predict

    progress = Listening()

    def scarce(self: DiffusersModel, *args: object) -> torch.Tensor:
        if progress.steps[-1:] == [3]:
            raise DeviceOutOfMemory("CUDA out of memory")
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    with pytest.raises(OutOfMemory, match="and go on with it, or start anew with smaller pictures"):
        erase(pico, CONCEPT, "esd", settings, progress, state)
    assert state.exists()
    monkeypatch.undo()
    after = Listening()
    resumed, history = erase(pico, CONCEPT, "esd", settings, after, state)
    assert after.steps[0] == 4 and len(history.losses) == 6
    for a, b in zip(undisturbed.deltas.parameters(), resumed.deltas.parameters(), strict=True):
        assert torch.equal(a, b)


def test_drawing_trajectories_steps_down_when_memory_is_short(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EsdSettings(replace=False, rank=2, steps=2, trajectories=6, trajectory_steps=3, batch=2, max_batch=16)
    expected, _ = erase(pico, CONCEPT, "esd", settings)
    original, refused = DiffusersModel.predict, []

    def scarce(self: DiffusersModel, latents: torch.Tensor, *args: object) -> torch.Tensor:
        if len(latents) > 4:
            refused.append(len(latents))
            raise DeviceOutOfMemory("CUDA out of memory")
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
