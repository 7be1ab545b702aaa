"""What a method may carry through a training besides its deltas: found prompts, picture tokens, a second stage."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor

from .model import Conditioning, encode_each

if TYPE_CHECKING:
    from .methods.text_space import Phrasing
    from .trainer import Trainer


class RunState:
    """The state of one run. This one carries nothing; methods that need more derive from it.

    All that changes during the run is in ``tensors``, which is part of the checkpoint: ``begin`` and ``before_step``
    return new contents instead of writing, so that a run that is stopped anywhere goes on with the same bits.
    """

    def __init__(self, trainer: Trainer) -> None:
        # Not for good: the trainer holds its state, and two that hold each other stay in the device's memory, with all
        # that is trained, until Python happens to look for such.
        self.trainer: Trainer = weakref.proxy(trainer)
        self.tensors: dict[str, Tensor] = {}
        self.phrasing: Phrasing | None = None
        """Makes the prompts of ``text_space``, from the first time they are asked for."""

    def attached(self) -> AbstractContextManager[None]:
        """What hangs on the model while it is trained, besides the deltas."""
        return nullcontext()

    def begin(self) -> dict[str, Tensor]:
        """The contents of a new run, before its first step."""
        return {}

    def before_step(self) -> dict[str, Tensor]:
        """The contents for the coming step."""
        return self.tensors

    def after_backward(self) -> None:
        """What was only held for the backward pass may go: a host may paint a preview before the next step."""

    def pools_are_due(self) -> bool:
        """Whether the pools are drawn anew before the coming step."""
        return self.trainer.step % self.trainer.settings.refresh == 0

    def teacher(self, pool: str) -> str:
        """Who predicts in a pool: ``original`` or ``training``, as for ``draw_pool``."""
        return "original"

    def encode_role(self, pool: str, role: str, prompts: Sequence[str]) -> Conditioning:
        """The conditionings of a pool's role, one for each trajectory."""
        return encode_each(self.trainer.model, prompts)

    def figures(self) -> dict[str, float]:
        """What is worth keeping in the training's history of the present contents."""
        return {}

    def closing(self) -> dict[str, float]:
        """Figures taken at the end of the training, for its history."""
        return {}
