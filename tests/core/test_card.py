"""What would fail or be slow on a GPU alone, on a card that is not there (``card``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from erasure_core.methods import METHODS

TESTS = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no device written in Python",
)


def done(pico: Path, folder: Path, *methods: str) -> list[list[str]]:
    """The lines that ``card_work`` prints, in words."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, str(TESTS / "card_work.py"), str(pico), str(folder), *methods]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return [line.split() for line in run.stdout.splitlines()]


def test_no_method_mixes_devices_and_a_step_waits_for_the_device_once(
    pico_folders: dict[str, Path], tmp_path: Path
) -> None:
    waited = {name: [int(count) for count in counts] for name, *counts in done(pico_folders["sd1"], tmp_path, *METHODS)}
    assert list(waited) == list(METHODS)
    for name, (first, *others) in ((name, counts) for name, counts in waited.items() if counts):
        assert first < 10 and set(others) == {1}, name


def test_files_pictures_searches_and_reports_mix_no_devices(pico_folders: dict[str, Path], tmp_path: Path) -> None:
    assert done(pico_folders["sd1"], tmp_path) == [["files"], ["pictures"], ["search"], ["report"]]
