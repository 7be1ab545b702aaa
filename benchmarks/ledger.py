"""Counts what a computation costs, operation by operation, on real tensors or on fake ones that hold no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
READ_BACK = torch.ops.aten._local_scalar_dense
"""What ``.item()`` calls: the host waits for the device."""


@dataclass(frozen=True)
class Operation:
    """One matrix multiplication, convolution or attention.

    Args:
        flops: floating-point operations.
        moved: bytes of its distinct inputs and outputs.
    """

    flops: int
    moved: int


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[2] * (width + value.shape[3])


def flops_of(function: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> int | None:
    """Floating-point operations, or ``None`` for anything but matrix multiplications, convolutions and attention."""
    packet = function.overloadpacket
    if packet is ATTENTION:
        return _attention_flops(*inputs[:3])
    if packet is ATTENTION_BACKWARD:
        return 2 * _attention_flops(*inputs[1:4])  # four products; computing the scores again is not needed
    if packet not in flop_registry:
        return None
    return int(flop_registry[packet](*inputs, **named, out_val=output))


def _tensors(*parts: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, Tensor)]


def _size(tensors: Iterable[Tensor]) -> int:
    distinct = {id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}
    return sum(distinct.values())


class Ledger(TorchDispatchMode):
    """While entered, notes every operation.

    Attributes:
        operations: the matrix operations, in order.
        passed: bytes that all other operations read and write.
        live: bytes of tensors made inside that still exist.
        peak: the largest ``live`` so far.
        read_backs: how often the host waited for a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.passed = self.live = self.peak = self.read_backs = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count the memory of tensors that were made before."""
        for tensor in tensors:
            self._watch(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        output = func(*args, **named)
        if func.overloadpacket is READ_BACK:
            self.read_backs += 1
        results = _tensors(output)
        flops = flops_of(func, args, named, output)
        if flops is not None:
            self.operations.append(Operation(flops, _size([*_tensors(args, named), *results])))
        elif not func.is_view:
            self.passed += _size([*_tensors(args, named), *results])
        self.watch(results)
        return output

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, self._forget(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            del self._known[key]
            self.live -= size

        return forget
