"""What an erasing took is told by its file, also of a training that was stopped in between, and files without load."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from stopping import StopAt

from erasure_core import Concept, Report, cost, erase, read_erasure, write_erasure
from erasure_core.cli.main import main
from erasure_core.cost import Meter, cost_text, together
from erasure_core.errors import Cancelled, InvalidFile
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.manifest import Manifest
from erasure_core.methods.closed_form import ClosedFormSettings
from erasure_core.methods.esd import EsdSettings

BALL = Concept(("ball",), "box", ("a cat",))
SHORT = EsdSettings(steps=4, trajectories=4, trajectory_steps=2, batch=1, rank=2, contexts=2, neighbours=0)


class Slow(StopAt):
    """Every training step takes ten seconds of a clock that otherwise stands still."""

    now = 0.0

    def update(self, report: Report) -> None:
        Slow.now += 10.0 * (report.stage == "training")
        super().update(report)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "clock", lambda: Slow.now)


def test_the_seconds_of_a_training_that_was_stopped_add_up(pico: DiffusersModel, tmp_path: Path) -> None:
    state = tmp_path / "x.partial"
    with pytest.raises(Cancelled):
        erase(pico, BALL, "esd", SHORT, Slow(1), state)
    Slow.now += 1000.0  # nobody trains meanwhile
    erasure, history = erase(pico, BALL, "esd", SHORT, Slow(9), state)
    assert history.seconds == 40.0 and erasure.manifest.cost == {"seconds": 40.0}


def test_a_file_tells_its_cost(pico: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ball.safetensors"
    write_erasure(path, erase(pico, BALL, "esd", SHORT, Slow(9))[0], pico)
    manifest = read_erasure(path).manifest
    assert manifest is not None and manifest.cost == {"seconds": 40.0}
    assert main(["inspect", str(path)]) == 0 and "took       40 s" in capsys.readouterr().out


def test_older_files_load_and_wrong_costs_are_refused(pico: DiffusersModel) -> None:
    manifest = erase(pico, BALL, "closed_form", ClosedFormSettings(neighbours=0))[0].manifest
    raw = asdict(manifest)
    assert Manifest.from_json(json.dumps({name: value for name, value in raw.items() if name != "cost"})).cost == {}
    for wrong in ([1], {"seconds": "1"}, {"seconds": -1}, {"seconds": True}):
        with pytest.raises(InvalidFile, match="cost has the wrong type"):
            Manifest.from_json(json.dumps(raw | {"cost": wrong}))


def test_the_peak_is_a_cards_since_the_work_began(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"cuda:1": 99}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update({str(device): 0}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[str(device)])
    meter = Meter(torch.device("cuda:1"))
    peaks["cuda:1"] += 3 * 2**29
    found = meter.cost(1234.0)
    assert found == {"seconds": 1234.0, "peak_bytes": 3 * 2**29}
    assert Meter(torch.device("cpu")).cost(1.0) == {"seconds": 1.0}, "a host's whole memory says nothing"
    assert together(found, {"seconds": 1.0, "peak_bytes": 5}) == {"seconds": 1235.0, "peak_bytes": 3 * 2**29}
    assert cost_text(found) == "1,234 s, at most 1.5 GiB of the device's memory, the model with it"
