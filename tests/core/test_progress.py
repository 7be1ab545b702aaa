"""Progress of long commands: one bar for the whole of the work, and Ctrl-C between two steps of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pico import write_checkpoint, write_pico
from random_changes import as_erasure, random_deltas

from erasure_core import Report, write_erasure
from erasure_core.algebra import low_rank, merged
from erasure_core.cli.main import main
from erasure_core.cli.terminal import TerminalProgress
from erasure_core.errors import Cancelled
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.progress import Noting, PartOfWhole, Silent, reporting_each


class Noted(Silent):
    """Notes what it is told, and cancels when it was told ``enough``."""

    def __init__(self, enough: int = 1000) -> None:
        self.seen: list[tuple[str, int, int]] = []
        self.enough = enough

    def update(self, report: Report) -> None:
        self.seen.append((report.stage, report.step, report.total))

    def cancelled(self) -> bool:
        return len(self.seen) >= self.enough


def test_items_are_told_one_after_the_other_until_the_user_stops() -> None:
    progress = Noted()
    assert list(reporting_each("abc", "reading", progress)) == ["a", "b", "c"]
    assert progress.seen == [("reading", 1, 3), ("reading", 2, 3), ("reading", 3, 3)]
    with pytest.raises(Cancelled, match=r"Stopped after 2 of 3 \(reading\)"):
        list(reporting_each("abc", "reading", Noted(enough=2)))


def test_a_part_is_told_as_the_whole() -> None:
    progress = Noted(enough=1)
    part = PartOfWhole(progress, before=20, total=50, each=3)
    assert not part.cancelled()
    part.update(Report("sampling", 2, 10))
    assert progress.seen == [("sampling", 26, 50)] and part.cancelled()


def test_news_are_passed_on_and_kept_once() -> None:
    progress = Noted()
    noting = Noting(progress)
    for step in (1, 2):
        noting.update(Report("training", step, 2))
        noting.update(Report("training", step, 2, note="The disk is full."))
    assert noting.notes == ["The disk is full."] and len(progress.seen) == 4


def test_converting_and_adding_up_can_be_stopped(pico: DiffusersModel) -> None:
    deltas = random_deltas(pico, "cross-attention")
    for work in (lambda p: low_rank(deltas, 1, progress=p), lambda p: merged([(deltas, 1.0)], p)):
        progress = Noted()
        work(progress)
        assert [step for _, step, _ in progress.seen] == list(range(1, len(deltas) + 1))
        with pytest.raises(Cancelled):
            work(Noted(enough=1))


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What the terminal is told: (stage, step, total)."""
    seen: list[tuple[str, int, int]] = []

    def update(self: TerminalProgress, report: Report) -> None:
        seen.append((report.stage, report.step, report.total))

    monkeypatch.setattr(TerminalProgress, "update", update)
    return seen


def test_commands_on_files_show_how_far_they_are(tmp_path: Path, bars: list[tuple[str, int, int]]) -> None:
    model = DiffusersModel.load(write_pico(tmp_path / "model", "sd1", real_vocabulary=True))
    checkpoint, file = write_checkpoint(tmp_path / "model.safetensors", model), tmp_path / "ball.safetensors"
    deltas = random_deltas(model, "cross-attention")
    write_erasure(file, as_erasure(model, deltas), model)
    base = ["--model", str(checkpoint), "--overwrite", "--out", str(tmp_path / "new.safetensors")]
    for command, stage in (
        (["convert", str(file), "--rank", "1"], "converting"),
        (["merge", str(file), str(file)], "adding up"),
        (["bake", "--erasure", str(file)], "building in"),
    ):
        bars.clear()
        assert main([*command, *base]) == 0
        assert [step for name, step, _ in bars if name == stage] == list(range(1, len(deltas) + 1)), command


def test_painting_in_batches_has_one_bar(
    pico_folders: dict[str, Path], tmp_path: Path, bars: list[tuple[str, int, int]]
) -> None:
    pictures = ["--prompt", "a ball", "--count", "5", "--batch", "2", "--steps", "3", "--out", str(tmp_path)]
    assert main(["generate", "--model", str(pico_folders["sd1"]), *pictures]) == 0
    assert [(step, total) for _, step, total in bars] == [(s, 15) for s in (2, 4, 6, 8, 10, 12, 13, 14, 15)]
