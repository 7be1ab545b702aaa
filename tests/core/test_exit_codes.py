"""The documented exit codes are those that the commands return, in every way to fail."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure_core import errors
from erasure_core.cli import generate
from erasure_core.cli.main import EXIT_CODES, main
from erasure_core.errors import ErasureError
from erasure_core.hosts.diffusers import DiffusersModel

ROOT = Path(__file__).parents[2]
DOCUMENTED = {int(code) for code in re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)}
QUICK = [
    "--method",
    "esd",
    "--no-replace",
    "--steps",
    "3",
    "--rank",
    "2",
    "--trajectories",
    "4",
    "--trajectory-steps",
    "3",
    "--batch",
    "2",
]


def all_errors(kind: type[ErasureError] = ErasureError) -> set[type[ErasureError]]:
    return {kind} | {error for child in kind.__subclasses__() for error in all_errors(child)}


def test_every_error_has_a_documented_code() -> None:
    assert {error.exit_code for error in all_errors()} <= DOCUMENTED
    assert {0, 2, 3, 4, 5, 6, 130, 141} == DOCUMENTED


def test_the_documentation_lists_the_same_codes() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)}
    printed = {int(code): text for code, text in re.findall(r"^ +(\d+) +(.+)$", EXIT_CODES, re.MULTILINE)}
    unmarked = {code: meaning.replace("`", "") for code, meaning in rows.items()}
    assert unmarked == {code: meaning.replace("`", "") for code, meaning in printed.items()}


@pytest.mark.parametrize("command", ["erase", "generate", "inspect", "merge", "convert", "bake"])
def test_every_command_prints_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and EXIT_CODES.splitlines()[-1] in capsys.readouterr().out


@pytest.fixture
def command(pico_folders: dict[str, Path], tmp_path: Path) -> list[str]:
    out = str(tmp_path / "ball.safetensors")
    return ["erase", "--model", str(pico_folders["sd1"]), "--concept", "ball", "--out", out, *QUICK]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    """Every prediction raises, or is not a number."""

    original = DiffusersModel.predict

    def predict(self: DiffusersModel, *args: Any) -> torch.Tensor:
        if error is not None:
            raise error
        return original(self, *args) * float("nan")

    monkeypatch.setattr(DiffusersModel, "predict", predict)


@pytest.mark.parametrize(
    "error, code",
    [
        (None, 4),
        (errors.DeviceOutOfMemory("CUDA out of memory"), 6),
        (MemoryError(), 6),
        (KeyboardInterrupt(), 130),
        (errors.Cancelled("Stopped."), 130),
    ],
    ids=["not a number", "out of memory", "no memory", "stopped at once", "stopped"],
)
def test_failures_of_the_work(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    code: int,
) -> None:
    failing(monkeypatch, error)
    assert main(command) == code
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("concept-erasure: ")
    assert not (tmp_path / "ball.safetensors").exists()


def test_flags_that_need_less_memory_are_told_where_there_are_flags(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The core, which a web UI and ComfyUI use as well, names none."""
    failing(monkeypatch, errors.DeviceOutOfMemory("CUDA out of memory"))
    assert main(command) == 6
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.endswith("fewer layers. A smaller --size or --rank, fewer --layers or --device cpu need less.")


def test_too_little_memory_for_painting(
    pico_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A true failure of the allocator, in the words it has for it."""
    monkeypatch.setattr(generate, "sample", lambda *args, **options: torch.empty(2**60))
    command = ["generate", "--model", str(pico_folders["sd1"]), "--prompt", "a", "--out", str(tmp_path)]
    assert main(command) == 6
    assert "too little memory; try a smaller --batch" in capsys.readouterr().err


def test_failures_of_input_and_output(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*command, "--concept", ""]) == 3
    assert main([*command, "--out", str(tmp_path / "x.ckpt")]) == 5
    with pytest.raises(SystemExit) as left:
        main([*command, "--size", "77"])
    assert left.value.code == 2
    assert main(command) == 0
