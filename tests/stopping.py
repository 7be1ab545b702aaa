"""A user who stops a training."""

from __future__ import annotations

from erasure_core import Report, Silent


class StopAt(Silent):
    """Cancels when the given number of training steps is done."""

    def __init__(self, step: int) -> None:
        self.stop, self.done = step, 0

    def update(self, report: Report) -> None:
        if report.stage == "training":
            self.done = report.step

    def cancelled(self) -> bool:
        return self.done >= self.stop
