"""Published training loops, written anew from their descriptions, to be measured beside ours.

Each step samples a fresh state: from pure noise, through a part of a 50-step schedule with guidance (two predictions a
step), batch 1. Then the teacher is asked for two predictions, the student for one, and Adam takes a step.

    esd         two networks; the student's cross-attention is trained in full (ESD-x)
    leco        one network; a LoRA of the cross-attention, switched off for the teacher
    co_erasing  two networks; everything but cross-attention is trained; four picture tokens in every cross-attention
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from erasure_core.delta import DeltaSet, new_deltas, weight_of
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.image_prompt import ImageAdapter, ImageBranch, ImagePrompted
from erasure_core.layers import select
from erasure_core.model import Conditioning, LoadedModel

from .meter import Meter
from .parts import OPTIMISER, STUDENT, TEACHER, TRAJECTORY

SCHEDULE, GUIDANCE, TOKENS = 50, 3.0, 4
MEAN_STEPS = SCHEDULE // 2
"""How far a loop samples on average: it stops at a random one of the schedule's steps."""


@dataclass(frozen=True)
class Loop:
    """What distinguishes the loops.

    Args:
        layers: that are trained.
        networks: copies of the network in memory.
        rank: of a LoRA; 0 trains the network's own weights.
        pictures: whether the student sees picture tokens.
    """

    layers: str
    networks: int
    rank: int = 0
    pictures: bool = False


LOOPS = {
    "esd": Loop("cross-attention", networks=2),
    "leco": Loop("cross-attention", networks=1, rank=4),
    "co_erasing": Loop("all-but-cross-attention", networks=2, pictures=True),
}


@dataclass
class Running:
    """A loop on a model: the student, its teacher, and what is trained."""

    student: LoadedModel
    teacher: LoadedModel
    deltas: DeltaSet
    prompts: Conditioning
    optimizer: torch.optim.Optimizer
    meter: Meter

    @torch.no_grad()
    def sample(self, steps: int) -> tuple[Tensor, Tensor]:
        """z_t and t after ``steps`` guided steps of the student from pure noise."""
        model, timesteps = self.student, self.student.schedule.timesteps(SCHEDULE)[: steps + 1]
        z = torch.randn(1, *model.latent_shape).to(model.device)
        for now, following in pairwise(timesteps):
            t, later = (torch.tensor([time], device=model.device) for time in (now, following))
            empty, towards = model.predict(z.repeat(2, 1, 1, 1), t.repeat(2), self.prompts).chunk(2)
            z = model.schedule.step(z, t, later, empty + GUIDANCE * (towards - empty))
        return z, torch.tensor([timesteps[-1]], device=model.device)

    @torch.no_grad()
    def target(self, z: Tensor, t: Tensor) -> Tensor:
        """The frozen network's eps(z, "") - (eps(z, c) - eps(z, "")), one call for each prompt."""
        if isinstance(self.student, ImagePrompted):
            self.student.branch.tokens = None
        with self.deltas.off():
            empty, concept = (self.teacher.predict(z, t, self.prompts[[i]]) for i in (0, 1))
        return 2 * empty - concept

    def step(self, sampling: int = MEAN_STEPS) -> None:
        """One optimiser step after ``sampling`` sampling steps."""
        with self.meter.part(TRAJECTORY):
            z, t = self.sample(sampling)
        with self.meter.part(TEACHER):
            target = self.target(z, t)
        with self.meter.part(STUDENT):
            loss = F.mse_loss(self.student.predict(z, t, self.prompts[[1]]), target)
            loss.backward()  # type: ignore[no-untyped-call]
        with self.meter.part(OPTIMISER):
            self.optimizer.step()
            self.optimizer.zero_grad()


@contextmanager
def running(name: str, model: DiffusersModel, meter: Meter, share_teacher: bool = False) -> Iterator[Running]:
    """A loop ready to take steps; the model's weights are as before afterwards.

    Args:
        name: one of ``LOOPS``.
        model: what to erase from.
        meter: where the parts' seconds go.
        share_teacher: the teacher is the student's own network, where there is no memory for two. Times are the same.
    """
    loop = LOOPS[name]
    layers = select(model.layers(), loop.layers)
    layers = {layer: module for layer, module in layers.items() if layer.startswith("unet.")}
    deltas = new_deltas(layers if loop.rank else {}, loop.rank, 0).to(model.device)
    kept = [] if loop.rank or share_teacher else [(weight_of(m), weight_of(m).clone()) for m in layers.values()]
    with ExitStack() as stack:
        teacher = _second(model) if loop.networks > 1 and not share_teacher else model
        stack.enter_context(model.trainable())
        student, prompts = _with_pictures(model, loop, stack)
        stack.enter_context(deltas.attached(model.layers()))
        trained = deltas.parameters() if loop.rank else [weight_of(module) for module in layers.values()]
        for parameter in trained:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, lr=0.0 if share_teacher else 1e-5, weight_decay=0.0)
        yield Running(student, teacher, deltas, prompts, optimizer, meter)
    with torch.no_grad():
        for weight, before in kept:
            weight.copy_(before)
            weight.grad = None


def _second(model: DiffusersModel) -> DiffusersModel:
    """The same model with a network of its own."""
    network = copy.deepcopy(model.unet).requires_grad_(False)
    return DiffusersModel(network, model.text_encoders, model.tokenizers, model.schedule)


@torch.no_grad()
def _with_pictures(model: DiffusersModel, loop: Loop, stack: ExitStack) -> tuple[LoadedModel, Conditioning]:
    """The student and the two prompts it is asked, with picture tokens beside them if the loop has such."""
    prompts = model.encode(["", "a ball"])
    if not loop.pictures:
        return model, prompts
    branch = ImageBranch(ImageAdapter.of_model(model), model)
    stack.enter_context(branch.attached(model.layers()))
    tokens = torch.randn(2, TOKENS, prompts.context.shape[-1], device=model.device).to(prompts.context.dtype)
    return ImagePrompted(model, branch), replace(prompts, image=tokens)
