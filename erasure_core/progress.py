"""One callback for progress and one check for cancellation; hosts plug their own in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from .errors import Cancelled

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """State of a running work.

    Args:
        stage: short name of what is being done, for example ``"training"``.
        step: finished steps of this stage.
        total: all steps of this stage.
        losses: named terms of the last step's loss.
        note: news that the user should read, such as that memory is short. Such a report tells nothing else: stage and
            step are those at which it comes.
    """

    stage: str
    step: int
    total: int
    losses: dict[str, float] | None = None
    note: str = ""


class Progress(Protocol):
    """What a host plugs in."""

    def update(self, report: Report) -> None:
        """Show how far the work is."""

    def cancelled(self) -> bool:
        """Whether the user asked to stop. Asked before every model call that takes noticeable time."""
        ...


class Silent:
    """Shows nothing and never cancels."""

    def update(self, report: Report) -> None:
        return None

    def cancelled(self) -> bool:
        return False


@dataclass(frozen=True)
class Noting:
    """Passes on what is reported, and keeps the notes in it.

    Args:
        shown: where it is passed on to.
        notes: sentences, each once.
    """

    shown: Progress
    notes: list[str] = field(default_factory=list)

    def update(self, report: Report) -> None:
        if report.note and report.note not in self.notes:
            self.notes.append(report.note)
        self.shown.update(report)

    def cancelled(self) -> bool:
        return self.shown.cancelled()


@dataclass(frozen=True)
class PartOfWhole:
    """The progress of one part of a longer work, told as that of the whole: the time left is then the whole's.

    Args:
        whole: where it is told.
        before: steps that other parts have done already.
        total: steps of the whole.
        each: steps of the whole that one step of this part is.
    """

    whole: Progress
    before: int
    total: int
    each: int = 1

    def update(self, report: Report) -> None:
        self.whole.update(replace(report, step=self.before + self.each * report.step, total=self.total))

    def cancelled(self) -> bool:
        return self.whole.cancelled()


def reporting_each(items: Sequence[T], stage: str, progress: Progress | None) -> Iterator[T]:
    """The items one after the other, with a report after each.

    Raises:
        Cancelled: the user stopped.
    """
    progress = progress or Silent()
    for done, item in enumerate(items):
        if progress.cancelled():
            raise Cancelled(f"Stopped after {done} of {len(items)} ({stage}); nothing was written.")
        yield item
        progress.update(Report(stage, done + 1, len(items)))
