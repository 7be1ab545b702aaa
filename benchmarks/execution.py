"""Other ways to run the same network on a GPU, side by side: memory layout, CUDA graphs, compiled blocks.

None of them is used by the product; this is where it is seen whether one should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from erasure_core.delta import new_deltas
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select

from .machine import seconds, wall

WAYS = ("as it is", "channels_last", "CUDA graph", "blocks compiled")
Work = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """One way to run the network.

    Args:
        name: of ``WAYS``.
        predicting: seconds of a prediction without gradients.
        training: seconds of a prediction and its backward pass; ``None`` where that cannot be run so.
        preparing: seconds before the first of each is done.
    """

    name: str
    predicting: float
    training: float | None
    preparing: float


def ways(model: DiffusersModel, batch: int, device: str, names: tuple[str, ...] = WAYS) -> Iterator[Way]:
    """Measure each way with calls of ``batch`` latents; the network is as before afterwards."""
    z = torch.randn(batch, *model.latent_shape, device=model.device)
    t = torch.full((batch,), 500, device=model.device)
    said = model.encode(["a ball"])[[0] * batch].detach()
    layers = select(model.layers(), "cross-attention-kv")
    deltas = new_deltas(layers, 16, 0).to(model.device)

    @torch.no_grad()
    def predict() -> None:
        model.predict(z, t, said)

    def step() -> None:
        model.predict(z, t, said).square().mean().backward()  # type: ignore[no-untyped-call]
        for parameter in deltas.parameters():
            parameter.grad = None

    for name in names:
        as_graph = name == "CUDA graph"
        with model.trainable(), RUN_AS[name](model):
            started = wall(device)
            run = _graph(predict) if as_graph else predict
            run()
            training = None
            with deltas.attached(layers):
                if not as_graph:
                    step()
                prepared = wall(device) - started
                if not as_graph:
                    training = seconds(step, device)
            yield Way(name, seconds(run, device), training, prepared)


def _graph(work: Work) -> Work:
    """The same work as one CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay


@contextmanager
def _as_it_is(model: DiffusersModel) -> Iterator[None]:
    yield


@contextmanager
def _channels_last(model: DiffusersModel) -> Iterator[None]:
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.unet.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@contextmanager
def _compiled(model: DiffusersModel) -> Iterator[None]:
    """Compiled block by block, in the layout that suits compiled code: the whole network takes minutes."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    blocks = [block for block in model.unet.modules() if isinstance(block, (BasicTransformerBlock, ResnetBlock2D))]
    torch._dynamo.config.cache_size_limit = 2 * len(blocks)
    with _channels_last(model):
        for block in blocks:
            block.compile()
        try:
            yield
        finally:
            for block in blocks:
                _forget(block)


def _forget(block: nn.Module) -> None:
    block._compiled_call_impl = None


RUN_AS = {
    "as it is": _as_it_is,
    "channels_last": _channels_last,
    "CUDA graph": _as_it_is,
    "blocks compiled": _compiled,
}
