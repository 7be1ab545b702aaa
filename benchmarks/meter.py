"""Where the time of a training goes, measured from outside: the core knows nothing of being measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from erasure_core import trainer
from erasure_core.hosts.diffusers import DiffusersModel

from .machine import clock
from .parts import OPTIMISER, OTHER, STUDENT, TEACHER, TRAJECTORY


class Meter:
    """Seconds and predicted latents of each part of a training; a part within another counts for itself alone.

    Attributes:
        seconds: part to seconds.
        latents: (part, whether gradients are kept) to latents that went through the network.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._open = [OTHER]
        self.reset()

    def reset(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.latents: Counter[tuple[str, bool]] = Counter()
        self._since = clock(self.device)

    def until_now(self) -> Counter[str]:
        """The seconds of each part so far."""
        self._settle()
        return self.seconds.copy()

    def _settle(self) -> None:
        now = clock(self.device)
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time inside counts as ``name``."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _as(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return measured

    def _counted(self, predict: Callable[..., Any]) -> Callable[..., Any]:
        """A prediction without gradients within a training step is a teacher's."""

        def measured(model: DiffusersModel, latents: torch.Tensor, *rest: Any) -> Any:
            learns = torch.is_grad_enabled()
            name = TEACHER if self._open[-1] == STUDENT and not learns else self._open[-1]
            self.latents[name, learns] += len(latents)
            with self.part(name):
                return predict(model, latents, *rest)

        return measured

    @contextmanager
    def watching(self) -> Iterator[Meter]:
        """Measure every training inside."""
        kind = trainer.Trainer
        with ExitStack() as stack:
            for owner, name, part in (
                (trainer, "draw_pool", TRAJECTORY),
                (kind, "_backward", STUDENT),
                (torch.optim.AdamW, "step", OPTIMISER),
            ):
                stack.enter_context(mock.patch.object(owner, name, self._as(part, getattr(owner, name))))
            predict = self._counted(DiffusersModel.predict)
            stack.enter_context(mock.patch.object(DiffusersModel, "predict", predict))
            self.reset()
            yield self
            self._settle()
