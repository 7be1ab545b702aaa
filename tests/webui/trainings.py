"""Short trainings for tests, and an Interrupt in the middle of one."""

from __future__ import annotations

from typing import Any

import pytest

from erasure_core import Concept
from erasure_core.methods import find_method

SHORT = {"steps": 6, "batch": 1, "trajectories": 1, "trajectory_steps": 2, "rank": 2}


def request(jobs: Any, method: str = "esd", **settings: Any) -> Any:
    """To erase "ball" with latents 8 wide."""
    chosen = find_method(method)
    settings = {"replace": method != "esd"} | settings  # its word search takes longer than its training here
    return jobs.Request(Concept(("ball",)), chosen, chosen.settings(**settings), 8)


def interrupt_after(
    jobs: Any, monkeypatch: pytest.MonkeyPatch, steps: int, state: Any, flag: str = "interrupted"
) -> None:
    """The user presses Interrupt when so many training steps are done; hosts that are set to interrupt after the
    present picture say so by another flag."""
    update = jobs.HostProgress.update

    def counted(self: Any, report: Any) -> None:
        update(self, report)
        if report.stage == "training" and report.step >= steps:
            setattr(state, flag, True)

    monkeypatch.setattr(jobs.HostProgress, "update", counted)
