"""The floor: the least time and memory that a method's own mathematics needs on a machine.

Counted on fake tensors, which have shapes but no numbers: SDXL at 1024 pixels takes seconds and no memory to count.

Time: over all matrix multiplications, convolutions and attentions, the sum of max(operations / matrix rate, bytes /
bandwidth). Everything else (norms, activations, additions) is taken to be fused into these and to cost nothing.
Memory: weights as they are stored, trained tensors with gradients and two moments, and what autograd keeps at the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from erasure_core.delta import new_deltas, weight_of
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.model import Conditioning

from .architectures import SIDES, modules, noise_schedule, text_widths, trained_layers
from .ledger import Ledger, Operation
from .machine import Rates

TOKENS = 77


@dataclass(frozen=True)
class Work:
    """What is done with a network in one call.

    Args:
        family: one of ``architectures.FAMILIES``.
        side: pixels along each side of the pictures.
        batch: latents.
        layers: groups of layers that are trained, as ``trained_layers`` knows them; ``None`` only predicts.
        rank: of the changes; 0 is dense.
        checkpointing: activations are computed again.
        dtype: of the weights.
        tiny: the shrunk network.
        networks: copies of the network in memory.
        direct: the network's own weights are trained, as published scripts do.
    """

    family: str
    side: int
    batch: int
    layers: str | None = None
    rank: int = 16
    checkpointing: bool = False
    dtype: torch.dtype = torch.bfloat16
    tiny: bool = False
    networks: int = 1
    direct: bool = False


@dataclass(frozen=True)
class Cost:
    """What it costs.

    Args:
        operations: the matrix operations.
        peak: bytes at the peak, text encoders not included.
        weights: bytes of the networks' weights in it.
        text: bytes of the text encoders' weights, where they are not moved away.
    """

    operations: tuple[Operation, ...]
    peak: int
    weights: int
    text: int

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    def seconds(self, rates: Rates) -> float:
        """The floor on a machine."""
        return sum(max(o.flops / rates.flops, o.moved / rates.bandwidth) for o in self.operations)


def _bytes(parts: Sequence[nn.Module]) -> int:
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())


def _conditioning(work: Work) -> Conditioning:
    widths = text_widths(work.family, work.tiny)
    context = torch.randn(work.batch, TOKENS, sum(widths), dtype=work.dtype)
    pooled = torch.randn(work.batch, widths[-1], dtype=work.dtype) if work.family == "sdxl" else None
    return Conditioning(context, (5,) * work.batch, pooled)


@lru_cache(maxsize=2)
def _fake(family: str, dtype: torch.dtype, tiny: bool) -> tuple[FakeTensorMode, DiffusersModel]:
    """A model of fake tensors, and what makes them."""
    mode = FakeTensorMode()
    with mode:
        network, *texts = modules(family, SIDES[family], dtype, tiny)
        tokenizers: list[Any] = []
        return mode, DiffusersModel(network.eval(), texts, tokenizers, noise_schedule(family))


@lru_cache(maxsize=256)
def count(work: Work) -> Cost:
    """Count one prediction, or one training step with Adam where layers are trained."""
    mode, model = _fake(work.family, work.dtype, work.tiny)
    model.latent_shape = (4, work.side // 8, work.side // 8)
    network = _bytes([model.unet])
    with mode, Ledger() as ledger:
        ledger.live = (work.networks - 1) * network
        ledger.watch(model.unet.parameters())
        if work.layers is None:
            _predict(model, work)
        else:
            _train(model, work)
    model.unet.zero_grad(set_to_none=True)
    return Cost(tuple(ledger.operations), ledger.peak, work.networks * network, _bytes(model.text_encoders))


def _inputs(model: DiffusersModel, work: Work) -> tuple[Tensor, Tensor, Conditioning]:
    t = torch.zeros(work.batch, dtype=torch.int64)
    return torch.randn(work.batch, *model.latent_shape), t, _conditioning(work)


@torch.no_grad()
def _predict(model: DiffusersModel, work: Work) -> None:
    model.predict(*_inputs(model, work))


def _train(model: DiffusersModel, work: Work) -> None:
    """A step in the steady state: the moments are there already."""
    assert work.layers is not None
    layers = trained_layers(model, work.layers)
    deltas = new_deltas({} if work.direct else layers, work.rank, 0)
    latents, t, conditioning = _inputs(model, work)
    if "text-encoder" in work.layers:
        conditioning.context.requires_grad_(True)  # the gradient's way on into the text encoder
    with model.trainable(work.checkpointing), deltas.attached(layers):
        trained = [weight_of(layer) for layer in layers.values()] if work.direct else deltas.parameters()
        for parameter in trained:
            parameter.requires_grad_(True)
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
        predicted = model.predict(latents, t, conditioning)
        F.mse_loss(predicted, torch.zeros_like(predicted)).backward()  # type: ignore[no-untyped-call]
    del moments
