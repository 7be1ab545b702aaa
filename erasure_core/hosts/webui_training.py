"""Making a host's modules trainable for a while: frozen parameters, gradients, recomputed activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

RECOMPUTED = ("BasicTransformerBlock", "ResBlock")
"""Class names of the blocks whose activations are recomputed; every LDM-layout host uses these."""
_OUT_OF_PLACE: dict[Any, Callable[..., Tensor]] = {
    Tensor.add_: torch.add,
    Tensor.__iadd__: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.__isub__: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.__imul__: torch.mul,
    Tensor.div_: torch.div,
    Tensor.__itruediv__: torch.div,
}


class OutOfPlace(TorchFunctionMode):
    """Turns ``x += n`` into ``x = x + n``: the Forge family overwrites what backward needs. Bit-identical forward."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        needs = torch.is_grad_enabled() and isinstance(args[0] if args else None, Tensor) and func in _OUT_OF_PLACE
        return (_OUT_OF_PLACE[func] if needs else func)(*args, **(kwargs or {}))


def make_normal(modules: Sequence[nn.Module]) -> None:
    """Replace parameters and buffers that a host made in inference mode by equal ones that autograd accepts."""
    for module in {id(m): m for root in modules for m in root.modules()}.values():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


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
def recomputing(network: nn.Module) -> Iterator[None]:
    """Inside, activations of the network's blocks are recomputed in backward instead of kept."""
    blocks = [m for m in network.modules() if type(m).__name__ in RECOMPUTED]
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _recomputed(block.forward)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        # Entered here and not around the checkpoint: backward runs the block again, outside of any mode.
        with OutOfPlace():
            return forward(*args, **kwargs)

    def outer(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return outer
