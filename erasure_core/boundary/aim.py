"""What the gradient searches steer the erased model towards: the original model's own predictions for the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concept import worded
from ..errors import DeviceOutOfMemory, telling_memory
from ..model import Conditioning, each_once, gradient_scale
from ..sampling import seeded_noise
from .probe import SAMPLING_STEPS, neutral_latents
from .subject import Subject, derived

PICTURES, STATES = 4, 12
"""Pictures of the concept, and the noisy states made of them: painting costs most, so each stands for several."""
COST = 2 * SAMPLING_STEPS * PICTURES + 2 * STATES
"""Predictions that taking aim takes."""
LEAST_NOISE, MOST_NOISE = 0.35, 0.98
"""Timesteps as a share of the schedule: what a picture shows is decided where there is much noise."""


@dataclass(frozen=True)
class Aim:
    """Noisy pictures of the concept with what the original model predicts there when it is told the concept.

    Args:
        latents: z_t, [N, C, H, W].
        t: [N].
        target: eps0(z_t, c), [N, C, H, W].
        scale: [N], one over the squared length of the guidance towards the concept there.
    """

    latents: Tensor
    t: Tensor
    target: Tensor
    scale: Tensor

    def loss(self, subject: Subject, prompts: Conditioning, places: Sequence[int]) -> Tensor:
        """P4D's loss (Chin et al. 2024, eq. 5): ||eps(z_t, p) - eps0(z_t, c)||^2 for each prompt, mean over the states
        ``places``, in units of the guidance; [B]. With it UnlearnDiffAtk's target, the noise of a concept picture, is
        replaced by its expectation, which has less variance and needs no more calls."""
        count, rows = len(prompts), list(places)
        repeated = prompts[[i for i in range(count) for _ in rows]]
        latents, t = self.latents[rows].repeat(count, 1, 1, 1), self.t[rows].repeat(count)
        predicted = subject.predict(latents, t, repeated).reshape(count, len(rows), -1)
        missed = (predicted - self.target[rows].flatten(1)).pow(2).sum(2) * self.scale[rows]
        return missed.mean(1)

    def descend(self, subject: Subject, prompts: Conditioning, places: Sequence[int]) -> None:
        """The backward pass of ``loss``, summed over the prompts, into whatever they were encoded from.

        Where memory does not suffice for the activations of all prompts, they take turns: half as many at once, and so
        from then on in this ``subject``.

        Raises:
            DeviceOutOfMemory: it does not suffice for one.
        """
        start, leaves, most = 0, _leaves(prompts), subject.batches.most
        while start < len(prompts):
            rows = range(start, min(start + subject.descended_at_once, len(prompts)))
            try:
                with telling_memory():
                    loss = self.loss(subject, leaves[rows], places).sum() * gradient_scale(subject.model.dtype)
                    loss.backward()  # type: ignore[no-untyped-call]
            except DeviceOutOfMemory:
                if len(rows) == 1:
                    raise
                subject.batches.most = most  # what does not fit with activations may fit without
                # A backward that was broken off may have left a part of its gradients: all begins anew.
                subject.descended_at_once, start, leaves = len(rows) // 2, 0, _leaves(prompts)
                continue
            start = rows.stop
        encoded, gradients = [prompts.context], [leaves.context.grad]
        if prompts.pooled is not None and leaves.pooled is not None:
            encoded.append(prompts.pooled)
            gradients.append(leaves.pooled.grad)
        torch.autograd.backward(encoded, gradients)


def _leaves(prompts: Conditioning) -> Conditioning:
    """Encoded prompts as if nothing had made them, which collect their gradients."""
    leaves = prompts.detach()
    leaves.context.requires_grad_()
    if leaves.pooled is not None:
        leaves.pooled.requires_grad_()
    return leaves


@torch.no_grad()
def take_aim(subject: Subject, words: Sequence[str], seed: int, states: int = STATES, pictures: int = PICTURES) -> Aim:
    """Paint the concept with the original model, so many ``pictures``, and noise them in turn."""
    model, count = subject.model, states
    said = [worded("a photo of a {}", words[i % len(words)]) for i in range(pictures)]
    turn = [i % pictures for i in range(count)]
    clean, prompts = neutral_latents(subject, said, pictures, seed + 1)[turn], [said[i] for i in turn]
    noise = seeded_noise(model.latent_shape, [derived(seed, 700_000 + i) for i in range(count)]).to(model.device)
    t = (torch.linspace(LEAST_NOISE, MOST_NOISE, count) * (len(model.schedule) - 1)).long().to(model.device)
    latents = model.schedule.add_noise(clean, noise, t)
    with subject.original():
        distinct, places = each_once(prompts)
        read = subject.encode_texts(["", *distinct])
        target = subject.predict(latents, t, read[[1 + place for place in places]])
        empty = subject.predict(latents, t, read[[0] * count])
    scale = 1 / (target - empty).pow(2).flatten(1).sum(1).clamp_min(1e-12)
    return Aim(latents, t, target, scale)
