"""One callback for progress and one check for cancellation; hosts plug their own in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """State of a running work.

    Args:
        stage: short name of what is being done, for example ``"training"``.
        step: finished steps of this stage.
        total: all steps of this stage.
        losses: named terms of the last step's loss.
        preview: a latent [B, C, H, W] that a host may decode and show.
    """

    stage: str
    step: int
    total: int
    losses: dict[str, float] | None = None
    preview: Tensor | None = None


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
