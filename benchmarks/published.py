"""Published training loops, written anew with the defaults of their scripts, to be measured beside ours.

Each step samples one fresh state, from pure noise through a part of a 50-step schedule. Then the teacher and the
student are asked there, and Adam takes a step.

    esd         two networks; the frozen one samples, with guidance; cross-attention is trained in full (ESD-x)
    leco        one network; a LoRA of all layers of its transformers, switched off for the teacher. It samples with
                guidance, and asks three times of the teacher and once of the student, each time for two predictions
    co_erasing  two networks; the one in training samples, without guidance; everything but cross-attention is trained;
                four picture tokens in the student's cross-attention
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
from erasure_core.model import Conditioning, LoadedModel

from .architectures import TRANSFORMERS, trained_layers
from .meter import Meter
from .parts import OPTIMISER, STUDENT, TEACHER, TRAJECTORY

SCHEDULE, GUIDANCE, TOKENS = 50, 3.0, 4
MEAN_STEPS = SCHEDULE // 2
"""How far a loop samples on average, to half a step: it stops at a random one of the schedule's steps."""


@dataclass(frozen=True)
class Loop:
    """What distinguishes the loops.

    Args:
        layers: that are trained.
        networks: copies of the network in memory.
        steps: optimiser steps of a whole run.
        sampled: latents in the call of a sampling step: two with guidance, one without.
        teacher: calls of the teacher in an optimiser step.
        asked: latents in each of these calls and in the student's.
        frozen: whether the frozen network samples; else the one in training.
        rank: of a LoRA; 0 trains the network's own weights.
        pictures: whether the student sees picture tokens.
    """

    layers: str
    networks: int
    steps: int
    sampled: int = 2
    teacher: int = 2
    asked: int = 1
    frozen: bool = False
    rank: int = 0
    pictures: bool = False

    @property
    def pooled(self) -> int:
        """Latents through the network without gradients, in an optimiser step on average."""
        return MEAN_STEPS * self.sampled + self.teacher * self.asked


LOOPS = {
    "esd": Loop("cross-attention", networks=2, steps=200, frozen=True),
    "leco": Loop(TRANSFORMERS, networks=1, steps=500, teacher=3, asked=2, rank=4),
    "co_erasing": Loop("all-but-cross-attention", networks=2, steps=2 * 1000, sampled=1, pictures=True),
}
"""Steps are the scripts' defaults; Co-Erasing's are a run by text and one by pictures."""
ESD_2023 = 1000
"""Steps of ESD's first script, in which the network in training sampled. A step of it costs the same."""


@dataclass
class Running:
    """A loop on a model: the student, its teacher, and what is trained."""

    loop: Loop
    student: LoadedModel
    teacher: LoadedModel
    deltas: DeltaSet
    prompts: Conditioning
    optimizer: torch.optim.Optimizer
    meter: Meter

    @torch.no_grad()
    def sample(self, steps: int) -> tuple[Tensor, Tensor]:
        """z_t and t after ``steps`` sampling steps from pure noise, by words alone."""
        model, words = self.teacher if self.loop.frozen else self.student, replace(self.prompts, image=None)
        timesteps = model.schedule.timesteps(SCHEDULE)[: steps + 1]
        z = torch.randn(1, *model.latent_shape).to(model.device)
        for now, following in pairwise(timesteps):
            t, later = (torch.tensor([time], device=model.device) for time in (now, following))
            empty, towards = _asked(model, z, t, words, 1, self.loop.sampled)
            z = model.schedule.step(z, t, later, empty + GUIDANCE * (towards - empty))
        return z, torch.tensor([timesteps[-1]], device=model.device)

    @torch.no_grad()
    def target(self, z: Tensor, t: Tensor) -> Tensor:
        """The frozen network's eps(z, "") - (eps(z, c) - eps(z, "")); LECO asks for both that are of nothing."""
        if isinstance(self.student, ImagePrompted):
            self.student.branch.tokens = None
        with self.deltas.off():
            prompts = (1, 0, 0)[: self.loop.teacher]
            concept, neutral, *more = (self.ask(self.teacher, z, t, prompt) for prompt in prompts)
        return neutral - (concept - (more or [neutral])[0])

    def ask(self, model: LoadedModel, z: Tensor, t: Tensor, prompt: int) -> Tensor:
        """A prediction for a prompt. At LECO's guidance of 1 the empty prompt is asked for beside it and drops out."""
        empty, towards = _asked(model, z, t, self.prompts, prompt, self.loop.asked)
        return empty + (towards - empty) if self.loop.asked > 1 else towards

    def step(self, sampling: int = MEAN_STEPS) -> None:
        """One optimiser step after ``sampling`` sampling steps."""
        with self.meter.part(TRAJECTORY):
            z, t = self.sample(sampling)
        with self.meter.part(TEACHER):
            target = self.target(z, t)
        with self.meter.part(STUDENT):
            loss = F.mse_loss(self.ask(self.student, z, t, 1), target)
            loss.backward()  # type: ignore[no-untyped-call]
        with self.meter.part(OPTIMISER):
            self.optimizer.step()
            self.optimizer.zero_grad()


def _asked(
    model: LoadedModel, z: Tensor, t: Tensor, prompts: Conditioning, prompt: int, latents: int
) -> tuple[Tensor, Tensor]:
    """In one call, predictions for the empty prompt and for another; of one latent, that for the other alone, twice."""
    rows = [0, prompt][-latents:]
    parts = model.predict(z.repeat(latents, 1, 1, 1), t.repeat(latents), prompts[rows]).chunk(latents)
    return parts[0], parts[-1]


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
    layers = trained_layers(model, loop.layers)
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
        yield Running(loop, student, teacher, deltas, prompts, optimizer, meter)
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
