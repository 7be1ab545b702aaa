"""What the web UIs' modules need to be trained: weights that autograd accepts, and nothing written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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


def recomputed_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks whose activations are recomputed."""
    return [module for module in network.modules() if type(module).__name__ in RECOMPUTED]


def out_of_place(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward in ``OutOfPlace``."""

    def run(*inputs: Any, **named: Any) -> Any:
        with OutOfPlace():
            return forward(*inputs, **named)

    return run
