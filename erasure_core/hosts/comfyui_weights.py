"""The weights of a network that ComfyUI holds: read in every load state, and lent to a training as plain constants.

ComfyUI keeps weights in inference mode, in any number format, on any device, patched in place or on the fly. A training
must never let those tensors into its graph: it gets constants of its own, without a copy wherever that is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Cancelled, ModelError
from ..memory import free_memory

PLAIN_OPS = {"comfy_cast_weights": False, "weight_function": [], "bias_function": []}
"""Attributes by which ComfyUI's layers decide to cast or patch their weights in each call."""


class HostWeights:
    """What a ``ModelPatcher`` knows of the weights below a prefix, at the moment this is made.

    Args:
        patcher: ComfyUI's ``ModelPatcher``.
        prefix: beginning of the keys, for example ``diffusion_model.``.
    """

    def __init__(self, patcher: Any, prefix: str = "") -> None:
        self.patcher, self.prefix = patcher, prefix
        self._entries: dict[str, list[Any]] = patcher.get_key_patches(prefix or None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def stored(self, key: str) -> Tensor:
        """The unpatched weight as it is stored."""
        weight: Tensor = self._entries[key][0][0]
        return weight

    def is_patched(self, key: str) -> bool:
        return len(self._entries[key]) > 1

    def base(self, key: str) -> Tensor:
        """The unpatched weight as numbers: quantised ones are expanded to float32."""
        convert = self._conversion(key)
        weight = self.stored(key)
        if convert is None or not self.is_quantised(key):
            return weight
        import comfy.model_management as mm

        expanded: Tensor = convert(mm.cast_to_device(weight, torch.device("cpu"), torch.float32, copy=True))
        return expanded

    @torch.no_grad()
    def effective(self, key: str, device: torch.device | None = None) -> Tensor:
        """The weight with all patches of the graph (LoRAs, merges), as ComfyUI itself computes it: in float32."""
        if not self.is_patched(key):
            return self.base(key)
        import comfy.lora

        weight = self.base(key)
        start = weight.to(device or weight.device, torch.float32, copy=True)
        patched: Tensor = comfy.lora.calculate_weight(self._entries[key][1:], start, key)
        return patched

    def is_quantised(self, key: str) -> bool:
        """Whether a weight is stored as something else than plain floating-point numbers."""
        weight = self.stored(key)
        scaled = self._conversion(key) is not None and "float8" in str(weight.dtype)
        return type(weight) not in (Tensor, nn.Parameter) or scaled

    def _conversion(self, key: str) -> Callable[..., Tensor] | None:
        """How a layer with a number format of its own expands its weight."""
        path, _, leaf = key.rpartition(".")
        found: Callable[..., Tensor] | None = getattr(self.patcher.model.get_submodule(path), f"convert_{leaf}", None)
        return found


def constant(weight: Tensor) -> Tensor:
    """A normal tensor over the same memory: it may be used in a training, where an inference tensor may not."""
    alias = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return alias.set_(weight.untyped_storage(), weight.storage_offset(), weight.size(), weight.stride())


def refuse_quantised(weights: HostWeights) -> None:
    """Check that a training can read all weights.

    Raises:
        ModelError: some are quantised.
    """
    for key in weights:
        if weights.is_quantised(key):
            raise ModelError(
                f"The weights of this model are quantised ({key}), so it cannot be trained; load it unquantised. "
                "Finished erasures can be applied to it."
            )


@contextmanager
def lent(
    root: nn.Module, weights: HostWeights, device: torch.device, dtype: torch.dtype, keep: bool = True
) -> Iterator[None]:
    """Inside, the modules below ``root`` compute with constants that gradients may pass, and with nothing else.

    Weights in another format or place than wanted are converted in each call, so that no second network is held in
    memory (but see ``_converting_forward``). Those that the host keeps in main memory, as newer ones keep all, are
    copied once where the device has room for them: in each call they would take longer than the call. Forward and
    backward belong inside: checkpointing runs the modules again. On leaving, however that happens, every module is as
    it was.

    Args:
        root: the network whose keys ``weights`` holds below its prefix.
        weights: what it holds, patches included.
        device: where the training runs.
        dtype: what the network computes in.
        keep: as of ``_converting_forward``.
    """
    saved: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
    try:
        copies = _copies_fit(root, weights, device, dtype)
        for path, module in root.named_modules():
            saved.append((module, dict(module._parameters), dict(module.__dict__)))
            prefix = f"{weights.prefix}{path}." if path else weights.prefix
            _lend(module, prefix, weights, device, dtype, keep, copies)
        yield
    finally:
        for module, parameters, attributes in saved:
            module._parameters.update(parameters)
            for name in (*PLAIN_OPS, "forward"):
                module.__dict__.pop(name, None)
                if name in attributes:
                    module.__dict__[name] = attributes[name]


def is_at(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor lies on a device, which may be named without its number: a tensor's is never."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _copies_fit(root: nn.Module, weights: HostWeights, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has room for those of a network's weights that lie elsewhere, and for as much again."""
    keys = (
        f"{weights.prefix}{path}.{leaf}" if path else f"{weights.prefix}{leaf}"
        for path, module in root.named_modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    )
    away = sum(weights.stored(key).numel() for key in keys if not is_at(weights.stored(key), device))
    free = free_memory(device) if away and device.type != "cpu" else None
    return free is not None and 2 * away * dtype.itemsize <= free


def _lend(
    module: nn.Module,
    prefix: str,
    weights: HostWeights,
    device: torch.device,
    dtype: torch.dtype,
    keep: bool,
    copies: bool,
) -> None:
    ready = True
    for leaf, parameter in module._parameters.items():
        if parameter is None:
            continue
        key = prefix + leaf
        if weights.is_patched(key):
            held = weights.effective(key, device).to(device, dtype)
        else:
            held = constant(weights.stored(key))
        if copies and not is_at(held, device):
            held = held.to(device, dtype)
        module._parameters[leaf] = held  # type: ignore[assignment]  # a constant, deliberately no parameter
        ready = ready and is_at(held, device) and held.dtype == dtype
    if hasattr(module, "comfy_cast_weights"):
        module.__dict__.update(
            {name: value if name == "comfy_cast_weights" else [] for name, value in PLAIN_OPS.items()}
        )
    if not ready and not list(module.children()):
        module.__dict__["forward"] = _converting_forward(module, device, dtype, keep)


def _converting_forward(module: nn.Module, device: torch.device, dtype: torch.dtype, keep: bool) -> Callable[..., Any]:
    """The module's forward with its weights converted for the duration of a call.

    Where gradients flow through, autograd keeps what a call has converted until its backward pass: several calls of one
    step would keep the network several times. There, weights that lie in the right place already are converted once
    and kept, unless the blocks are computed again (``keep`` is false), where autograd has nothing to keep.
    """
    original = type(module).forward
    kept: dict[str, Any] = {}

    def forward(*inputs: Any, **named: Any) -> Any:
        held = dict(module._parameters)
        weights = {leaf: weight for leaf, weight in held.items() if weight is not None}
        converted: dict[str, Any] = kept or {leaf: weight.to(device, dtype) for leaf, weight in weights.items()}
        passes = any(isinstance(given, Tensor) and given.requires_grad for given in inputs)
        if keep and passes and all(is_at(weight, device) for weight in weights.values()):
            kept.update(converted)
        try:
            module._parameters.update(converted)
            return original(module, *inputs, **named)
        finally:
            module._parameters.update(held)

    return forward


def cancellable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward in which the host's interrupt is our own, see ``interrupt_cancels``."""

    def run(*inputs: Any, **named: Any) -> Any:
        with interrupt_cancels():
            return forward(*inputs, **named)

    return run


def of_a_copy(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that writes into a copy of its input: run again, it must read what it has read before."""

    def run(first: Tensor, *inputs: Any, **named: Any) -> Any:
        return forward(first.clone(), *inputs, **named)

    return run


@contextmanager
def out_of_place(root: nn.Module) -> Iterator[None]:
    """Inside, CLIP layers normalise copies of their inputs: they add to those in place, which a backward forbids."""

    def copies(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in inputs)

    norms = [m for name, m in root.named_modules() if name.rpartition(".")[2] in ("layer_norm1", "layer_norm2")]
    handles = [module.register_forward_pre_hook(copies) for module in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def interrupt_cancels() -> Iterator[None]:
    """Inside, the host's interrupt is our own: newer hosts raise theirs, which is no ``Exception``, from any layer, and
    a search would lose what it has found.

    Raises:
        Cancelled: the user interrupted.
    """
    import comfy.model_management as mm

    try:
        yield
    except mm.InterruptProcessingException:
        raise Cancelled("Stopped by the host's Interrupt.") from None
