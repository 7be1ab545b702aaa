"""A card that is not there: tensors that say they lie on ``card:0``, while their numbers lie in main memory.

What mixes devices fails as it does on a GPU, and what makes the host wait for the device is counted. The device is
registered with torch for good, so this belongs into a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CARD, CPU = torch.device("privateuseone", 0), torch.device("cpu")
ACROSS = (aten.copy_.default, aten._to_copy.default)
"""What may read one device and write another."""
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor)
"""What takes places from the CPU's memory for tensors of the card, but not the other way round."""
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)
"""What the host cannot go on without, beside copies to its own memory."""
KERNELS = (
    *("empty.memory_format", "empty_strided", "_to_copy", "copy_", "_copy_from", "_local_scalar_dense"),
    *("index.Tensor", "view", "as_strided", "fill_.Scalar", "zero_"),
)
"""What torch calls from below the mode."""
waits: Counter[str] = Counter()
"""How often the host had to wait, by operation."""


class MixedDevices(RuntimeError):
    """As on a GPU: all tensors are to be on the same device."""


class OnCard(Tensor):
    """A tensor of the card; its numbers are in ``held``."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CARD
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Card(TorchDispatchMode):
    """Inside, there is the card."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


def run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the numbers in main memory."""
    given = tree_leaves((args, kwargs))
    tensors = [one for one in given if isinstance(one, Tensor)]
    on_card = any(isinstance(one, OnCard) for one in tensors)
    wanted = kwargs.get("device")
    makes = wanted.type == CARD.type if wanted is not None else isinstance(args[0], OnCard) if op in ACROSS else on_card
    if makes and any(isinstance(one, torch.Generator) and one.device == CPU for one in given):
        raise MixedDevices(f"{op}: a generator of the CPU makes no numbers on the card")
    _check(op, args, tensors, on_card)
    if on_card and (op in WAITING or (op in ACROSS and not makes) or _finds_places(op, args)):
        waits[str(op)] += 1
    if not (on_card or makes):
        return op(*args, **kwargs)
    plain_args, plain = tree_map(lambda one: one.held if isinstance(one, OnCard) else one, (args, kwargs))
    if wanted is not None:
        plain |= {"device": CPU, **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    out = op(*plain_args, **plain)
    if op is aten.copy_.default:
        return args[0]
    if op is aten._to_copy.default and makes != isinstance(args[0], OnCard):
        out = out.clone()
    if makes:
        out = tree_map(lambda one: OnCard(one) if isinstance(one, Tensor) and not isinstance(one, OnCard) else one, out)
    changes = op.is_view or op._schema.is_mutable
    return return_and_correct_aliasing(op, args, kwargs, out) if makes and on_card and changes else out


def _check(op: Any, args: Any, tensors: list[Tensor], on_card: bool) -> None:
    """Raises MixedDevices for what a GPU would refuse: it takes single numbers of the CPU, and places."""
    if not on_card or op in ACROSS:
        return
    strange = [one for one in tensors if not isinstance(one, OnCard) and one.dim()]
    if op in INDEXING and isinstance(args[0], OnCard):
        strange = [one for one in strange if not any(one is place for place in args[1])]
    elif op in INDEXING:
        strange = tensors
    if strange:
        shapes = ", ".join(f"{tuple(one.shape)} on {one.device.type}" for one in tensors)
        raise MixedDevices(f"{op}: expected all tensors on the same device, found {shapes}")


def _finds_places(op: Any, args: Any) -> bool:
    """Whether an operation asks which places of a mask are set."""
    return op in INDEXING and any(isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1])


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """What stands as ``torch.card``."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def _kernel(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: run(op, args, kwargs)


def install() -> torch.library.Library:
    """Register the card with torch; the result has to be kept as long as it is used."""
    backend_registration._setup_privateuseone_for_python_backend("card", backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    for name in KERNELS:
        stem, _, overload = name.partition(".")
        library.impl(name, _kernel(getattr(getattr(aten, stem), overload or "default")), "PrivateUse1")
    return library
