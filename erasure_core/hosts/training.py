"""Making a host's modules trainable for a while: frozen parameters, and activations that are recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Any]


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, no parameter asks for a gradient and no module is in training mode; afterwards all is as before."""
    everything = [m for root in modules for m in root.modules()]
    parameters = [(p, p.requires_grad) for root in modules for p in root.parameters()]
    modes = [(module, module.training) for module in everything]
    try:
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for parameter, needed in parameters:
            parameter.requires_grad_(needed)
        for module, mode in modes:
            module.training = mode


@contextmanager
def recomputing(blocks: Sequence[nn.Module], around: Callable[[Forward], Forward]) -> Iterator[None]:
    """Inside, these blocks keep no activations: their backward runs them again.

    Args:
        blocks: of a network.
        around: what a host needs around a block's forward. It is called inside of what is run again: the backward runs
            a block outside of any mode that its caller was in.
    """
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _checkpointed(around(block.forward))
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward


def _checkpointed(run: Forward) -> Forward:
    def forward(*inputs: Any, **named: Any) -> Any:
        return checkpoint(run, *inputs, use_reentrant=False, **named)

    return forward
