"""Deltas: changes of single layers, hung on frozen modules and switched on and off.

The base weights are never written. A delta adds its own output to the frozen layer's output through a forward hook,
so one network is student (deltas on) and teacher (deltas off), and switched off it is bit-identical to the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import is_text

Layer = nn.Linear | nn.Conv2d
LARGEST = torch.finfo(torch.float32).max
"""A change whose norm is at most this is finite in float32, whatever its factors are."""


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a linear or convolution layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def fan_in(shape: torch.Size) -> int:
    """How many inputs one output of a weight of this shape reads."""
    return int(torch.Size(shape[1:]).numel())


class Delta(nn.Module):
    """The change of one layer. Parameters are float32 whatever the layer computes in."""

    def change(self) -> Tensor:
        """The change as a dense weight, float32, in the layer's own shape."""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight that is changed."""
        raise NotImplementedError

    def norm(self) -> float:
        """Frobenius norm of the change, in no more memory than the factors take themselves."""
        raise NotImplementedError

    def is_bounded(self) -> bool:
        """Whether the change is a number that float32 can hold."""
        return self.norm() <= LARGEST

    def acts(self) -> bool:
        """Whether the change is more than zeros; cheaper than its norm, but two factors that cancel count as acting."""
        raise NotImplementedError

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """What the change adds to the layer's output for input ``x``."""
        raise NotImplementedError


class LowRankDelta(Delta):
    """``up @ down``: the LoRA form (Hu et al. 2022). ``up`` starts at zero, so a new delta changes nothing.

    Args:
        down: [rank, inputs] or [rank, inputs, kh, kw].
        up: [outputs, rank] or [outputs, rank, 1, 1].
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down.float())
        self.up = nn.Parameter(up.float())

    @classmethod
    def zero(cls, shape: torch.Size, rank: int, generator: torch.Generator) -> LowRankDelta:
        """A delta that changes nothing yet. ``rank`` is cut to what a weight of this shape can have."""
        rank = min(rank, shape[0], fan_in(shape))
        # Unit-variance projections at any width: with it one setting serves a narrow and a wide model.
        down = torch.randn(rank, *shape[1:], generator=generator) / fan_in(shape) ** 0.5
        return cls(down, torch.zeros(shape[0], rank, *[1] * (len(shape) - 2)))

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.up), *self.down.shape[1:]))

    @torch.no_grad()
    def norm(self) -> float:
        up, down = self.up.flatten(1).cpu().double(), self.down.flatten(1).cpu().double()
        if self.rank**2 > len(up) * down.shape[1]:  # so that neither a giant rank nor a giant product is ever squared
            return float((up @ down).norm())
        return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())

    @torch.no_grad()
    def is_bounded(self) -> bool:
        # ||up down|| <= ||up|| ||down|| is nearly always enough, and far cheaper than the norm itself.
        return float(self.up.norm()) * float(self.down.norm()) <= LARGEST or super().is_bounded()

    @torch.no_grad()
    def acts(self) -> bool:
        up, down = self.up.flatten(1), self.down.flatten(1)
        if up.shape[1] and bool(up[:, 0].any()) and bool(down[0].any()):  # nearly always, and far cheaper than all
            return True
        return bool((up.any(dim=0) & down.any(dim=1)).any())

    def change(self) -> Tensor:
        return (self.up.flatten(1) @ self.down.flatten(1)).view(len(self.up), *self.down.shape[1:])

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        down, up = self.down.to(x), self.up.to(x)  # wherever a caller keeps them
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(_convolve(layer, x, down), up)
        return F.linear(F.linear(x, down), up)


class DenseDelta(Delta):
    """A full-size change of a layer's weight.

    Args:
        weight: float32, in the layer's own shape.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float())

    @classmethod
    def zero(cls, shape: torch.Size) -> DenseDelta:
        return cls(torch.zeros(shape))

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @torch.no_grad()
    def norm(self) -> float:
        return float(self.weight.cpu().double().norm())

    @torch.no_grad()
    def acts(self) -> bool:
        return bool(self.weight.any())

    def change(self) -> Tensor:
        return self.weight

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        weight = self.weight.to(x)
        return _convolve(layer, x, weight) if isinstance(layer, nn.Conv2d) else F.linear(x, weight)


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@torch.no_grad()
def inner_product(a: Delta, b: Delta) -> float:
    """The inner product of two changes of one layer; two of low rank are not expanded for it."""
    if isinstance(a, LowRankDelta) and isinstance(b, LowRankDelta):
        (up, down), (other_up, other_down) = _factors(a), _factors(b)
        return float(((up.T @ other_up) * (down @ other_down.T)).sum())
    if isinstance(b, LowRankDelta):
        a, b = b, a
    dense = b.change().detach().flatten(1).cpu().double()
    if isinstance(a, LowRankDelta):
        up, down = _factors(a)
        return float(((up.T @ dense) * down).sum())
    return float((a.change().detach().flatten(1).cpu().double() * dense).sum())


def _factors(delta: LowRankDelta) -> tuple[Tensor, Tensor]:
    return delta.up.flatten(1).cpu().double(), delta.down.flatten(1).cpu().double()


class DeltaSet:
    """The deltas of one erasure, by canonical layer name, with one strength for all of them.

    Args:
        deltas: canonical layer name to delta.
        strength: factor on every change; 0 is off.
    """

    def __init__(self, deltas: Mapping[str, Delta], strength: float = 1.0) -> None:
        self.deltas = dict(deltas)
        self.strength = strength
        self.called: set[str] = set()

    def __getitem__(self, name: str) -> Delta:
        return self.deltas[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.deltas)

    def __len__(self) -> int:
        return len(self.deltas)

    def changed(self) -> list[str]:
        """The layers whose change is not zero."""
        return [name for name, delta in self.deltas.items() if delta.acts()]

    def apart(self) -> tuple[DeltaSet, DeltaSet]:
        """The changes of the diffusion network, and those of the text encoders: many hosts give each a strength."""
        text = {name: delta for name, delta in self.deltas.items() if is_text(name)}
        unet = {name: delta for name, delta in self.deltas.items() if name not in text}
        return DeltaSet(unet, self.strength), DeltaSet(text, self.strength)

    def unused(self) -> list[str]:
        """Layers that the model never ran since the deltas were attached: their change does nothing."""
        return [name for name in self.deltas if name not in self.called]

    def parameters(self) -> list[nn.Parameter]:
        return [p for delta in self.deltas.values() for p in delta.parameters()]

    def to(self, device: torch.device) -> DeltaSet:
        for delta in self.deltas.values():
            delta.to(device)
        return self

    @contextmanager
    def attached(self, layers: Mapping[str, nn.Module]) -> Iterator[DeltaSet]:
        """Hang the deltas on a model's layers; on leaving they are gone.

        Raises:
            KeyError: a delta for a layer that the model does not have.
        """
        handles = []
        self.called = set()
        try:
            for name, delta in self.deltas.items():
                handles.append(layers[name].register_forward_hook(self._hook(name, delta), with_kwargs=True))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model is the untouched one: the teacher."""
        strength, self.strength = self.strength, 0.0
        try:
            yield
        finally:
            self.strength = strength

    def _hook(self, name: str, delta: Delta):  # type: ignore[no-untyped-def]  # torch's hook type is not exported
        def add(layer: Layer, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> Tensor | None:
            self.called.add(name)
            if self.strength == 0.0:
                return None
            x = inputs[0] if inputs else next(iter(named.values()))
            added = delta.output(layer, x).to(output.dtype)
            return output + (added if self.strength == 1.0 else self.strength * added)

        return add


def new_deltas(layers: Mapping[str, nn.Module], rank: int, seed: int) -> DeltaSet:
    """Deltas that change nothing yet; ``rank`` 0 makes dense ones."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[str, Delta] = {}
    for name, layer in sorted(layers.items()):
        shape = weight_of(layer).shape
        deltas[name] = LowRankDelta.zero(shape, rank, generator) if rank else DenseDelta.zero(shape)
    return DeltaSet(deltas)
