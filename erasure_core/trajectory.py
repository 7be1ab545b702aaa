"""Noisy latents to train on: many trajectories drawn in one batch, kept at many timesteps and used over many steps.

Published scripts draw one z_t for each optimiser step by sampling anew from pure noise (ESD: up to 50 guided network
calls a step). Here the states of a batch of trajectories are stored together with the teacher's predictions at those
states, so a step costs no teacher call at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .batches import Batches
from .delta import DeltaSet
from .model import Conditioning, LoadedModel, encode_each
from .progress import Progress, Report

EMPTY, PROMPT = "empty", "prompt"
"""The two roles that every pool has: the empty prompt and the prompt that drives the trajectory."""
WITHOUT, ALTERNATIVE = "without", "alternative"
"""The driving prompt without the concept, and with the alternative in its place, where a pool has them."""

BOTH, GOAL, ORIGINAL, TRAINING = "both", "goal", "original", "training"
"""Who draws trajectories: the frozen model towards the prompt, the same towards the goal (what is to be painted in the
concept's place), half of them each, or the model in training towards the prompt (as LECO and, in 2023, ESD did)."""
DRIVERS = (BOTH, GOAL, ORIGINAL, TRAINING)

Encode = Callable[[str, Sequence[str]], Conditioning]
"""Encodes prompts of a role, one for each trajectory."""


@dataclass(frozen=True)
class Draw:
    """A batch of states with what the frozen model predicts there.

    Args:
        latents: z_t, [B, C, H, W].
        t: timesteps, int64 [B].
        prompts: the prompt that drove each state's trajectory.
        teacher: role to the frozen model's prediction, each [B, C, H, W].
        which: the trajectory that each state is of, int64 [B] on the CPU.
        unanswered: where nothing is to be painted in the concept's place though other concepts of the same run have an
            alternative, bool [B] on the CPU; ``None`` is nowhere.
    """

    latents: Tensor
    t: Tensor
    prompts: list[str]
    teacher: Mapping[str, Tensor]
    which: Tensor
    unanswered: Tensor | None = None

    def to(self, device: torch.device) -> Draw:
        teacher = {role: prediction.to(device) for role, prediction in self.teacher.items()}
        return replace(self, latents=self.latents.to(device), t=self.t.to(device), teacher=teacher)

    @property
    def base(self) -> Tensor:
        """The frozen model's prediction for the prompt without the concept: eps0(z, ""), where that is all of it."""
        return self.teacher.get(WITHOUT, self.teacher[EMPTY])

    @property
    def guidance(self) -> Tensor:
        """The frozen model's direction towards the concept: g0(z, prompt) = eps0(z, prompt) - eps0(z, without it)."""
        return self.teacher[PROMPT] - self.base

    @property
    def towards(self) -> Tensor | None:
        """The same towards the alternative, if there is one."""
        return self.teacher[ALTERNATIVE] - self.base if ALTERNATIVE in self.teacher else None

    def answered_or(self, without: Tensor, answered: Callable[[Tensor], Tensor]) -> Tensor:
        """For each state what is wanted ``without`` an alternative, [B, C, H, W], or what is wanted where there is one,
        made from the direction towards it."""
        if self.towards is None:
            return without
        wanted = answered(self.towards)
        if self.unanswered is None:
            return wanted
        return torch.where(self.unanswered.to(wanted.device)[:, None, None, None], without, wanted)


Goal = Callable[[Draw], Tensor]
"""What the model in training is to predict at the states of a draw, from what the frozen one predicts there."""


@dataclass(frozen=True)
class PoolSettings:
    """How trajectories are drawn.

    Args:
        trajectories: how many. Of more prompts than that a random part has its turn in each pool.
        steps: sampling steps of a trajectory; all its states but the clean one are kept.
        guidance: classifier-free guidance scale of the sampling.
        max_batch: most latents in one network call.
    """

    trajectories: int = 48
    steps: int = 20
    guidance: float = 3.0
    max_batch: int = 64


class TrajectoryPool:
    """States of N trajectories at K timesteps with the teacher's predictions there.

    Args:
        states: z_t, [N, K, C, H, W].
        timesteps: int64 [K].
        texts: the distinct driving prompts.
        prompts: for each trajectory the index of its prompt in ``texts``.
        teacher: role to predictions [N, K, C, H, W].
        device: where draws go; the pool itself stays in main memory.
        unanswered: those of the ``texts`` in which nothing takes the concept's place.
    """

    def __init__(
        self,
        states: Tensor,
        timesteps: Tensor,
        texts: Sequence[str],
        prompts: list[int],
        teacher: dict[str, Tensor],
        device: torch.device,
        unanswered: Collection[str] = (),
    ) -> None:
        self.states, self.timesteps, self.texts, self.prompts = states, timesteps, texts, prompts
        self.teacher, self.device, self.unanswered = teacher, device, frozenset(unanswered)

    def draw(self, count: int, generator: torch.Generator, below: int | None = None) -> Draw:
        """``count`` states, uniform over trajectories and over the timesteps ``below`` a bound (at least the last)."""
        usable = [i for i, t in enumerate(self.timesteps.tolist()) if below is None or t < below]
        first = usable[0] if usable else len(self.timesteps) - 1
        which = torch.randint(len(self.states), (count,), generator=generator)
        when = torch.randint(first, len(self.timesteps), (count,), generator=generator)
        return self.at(which, when)

    def at(self, which: Tensor, when: Tensor) -> Draw:
        """The states of trajectories ``which`` [B] at their ``when``-th timesteps [B]."""
        teacher = {role: prediction[which, when] for role, prediction in self.teacher.items()}
        prompts = [self.texts[self.prompts[i]] for i in which.tolist()]
        without = torch.tensor([text in self.unanswered for text in prompts]) if self.unanswered else None
        return Draw(self.states[which, when], self.timesteps[when], prompts, teacher, which, without).to(self.device)

    def tensors(self) -> dict[str, Tensor]:
        """The pool as named tensors, for a checkpoint."""
        teacher = {f"teacher.{role}": prediction for role, prediction in self.teacher.items()}
        return {"states": self.states, "timesteps": self.timesteps, "prompts": torch.tensor(self.prompts), **teacher}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], texts: Sequence[str], device: torch.device, unanswered: Collection[str] = ()
    ) -> TrajectoryPool:
        """Inverse of ``tensors``; ``texts`` and those that are ``unanswered`` are the same as before."""
        prefix = "teacher."
        teacher = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        return cls(
            tensors["states"], tensors["timesteps"], texts, tensors["prompts"].tolist(), teacher, device, unanswered
        )


@torch.no_grad()
def draw_pool(
    model: LoadedModel,
    roles: Mapping[str, Sequence[str]],
    settings: PoolSettings,
    generator: torch.Generator,
    progress: Progress,
    deltas: DeltaSet,
    *,
    driver: str = ORIGINAL,
    teacher: str = ORIGINAL,
    encode: Encode | None = None,
    goal: Goal | None = None,
    always: int = 0,
    unanswered: Collection[str] = (),
) -> TrajectoryPool:
    """Sample trajectories with DDIM and keep every state with the teacher's predictions.

    Args:
        model: the loaded model with ``deltas`` hanging on it.
        roles: role to one prompt per driving prompt; needs ``EMPTY`` and ``PROMPT``, and the teacher predicts all.
        settings: size and guidance.
        generator: on the CPU, so that every device starts from the same noise.
        progress: asked for cancellation before each network call.
        deltas: switched off for the teacher.
        driver: one of ``DRIVERS``.
        teacher: who predicts: ``original``, or ``training``, the model as it is at this step.
        encode: encodes the prompts of a role, where that is not just ``model.encode``.
        goal: what the model in training is to predict, for drivers that lead there.
        always: so many of the first prompts are in every pool, or as many of them as fill half of it; the very first
            one, in any case.
        unanswered: driving prompts in which nothing takes the concept's place.

    Raises:
        Cancelled: the user stopped.
    """
    encode = encode or (lambda role, written: encode_each(model, written))
    texts = tuple(roles[PROMPT])
    first = torch.randperm(min(always, len(texts)), generator=generator)[: settings.trajectories // 2].tolist()
    if first and 0 not in first:
        first[-1] = 0
    others = torch.randperm(len(texts), generator=generator).tolist()
    order = list(dict.fromkeys([*first, *others]))
    prompts = [order[i % len(texts)] for i in range(settings.trajectories)]
    full = {role: [written[i] for i in prompts] for role, written in roles.items()}
    with deltas.off() if teacher == ORIGINAL else nullcontext():
        taught = {role: encode(role, written) for role, written in full.items()}
    driven_by_student = driver == TRAINING and teacher == ORIGINAL
    to_goal = _share_to_goal(len(prompts), driver if goal else ORIGINAL, generator)
    learning = {role: encode(role, full[role]) for role in (EMPTY, PROMPT) if driven_by_student}
    timesteps = model.schedule.timesteps(settings.steps)
    shape = (len(prompts), *model.latent_shape)
    z = torch.randn(shape, generator=generator).to(model.device)
    states = torch.empty(len(prompts), len(timesteps), *model.latent_shape)
    predictions = {role: torch.empty_like(states) for role in roles}
    batches = Batches(settings.max_batch)
    for i, now in enumerate(timesteps):
        progress.update(Report("trajectories", i, len(timesteps)))
        t = torch.full((len(prompts),), now, device=model.device)
        states[:, i] = z.cpu()
        with deltas.off() if teacher == ORIGINAL else nullcontext():
            predicted = predict_roles(model, taught, z, t, batches, progress)
        for role, prediction in predicted.items():
            predictions[role][:, i] = prediction.cpu()
        if driven_by_student:
            predicted = predict_roles(model, learning, z, t, batches, progress)
        leading = predicted[PROMPT]
        if goal is not None and len(to_goal):
            driven = [texts[p] for p in prompts]
            bare = torch.tensor([text in unanswered for text in driven]) if unanswered else None
            here = Draw(z, t, driven, predicted, torch.arange(len(prompts)), bare)
            leading = leading.index_copy(0, to_goal.to(leading.device), goal(here)[to_goal])
        guided = predicted[EMPTY] + settings.guidance * (leading - predicted[EMPTY])
        following = timesteps[i + 1] if i + 1 < len(timesteps) else -1
        z = model.schedule.step(z, t, torch.full_like(t, following), guided)
    return TrajectoryPool(states, torch.tensor(timesteps), texts, prompts, predictions, model.device, unanswered)


def _share_to_goal(count: int, driver: str, generator: torch.Generator) -> Tensor:
    """The places of those of ``count`` trajectories that lead to the goal: all, a random half, or none."""
    leading = {GOAL: count, BOTH: count // 2}.get(driver, 0)
    return torch.randperm(count, generator=generator)[:leading] if leading else torch.empty(0, dtype=torch.long)


def predict_roles(
    model: LoadedModel, rows: Mapping[str, Conditioning], z: Tensor, t: Tensor, batches: Batches, progress: Progress
) -> dict[str, Tensor]:
    """Predictions for every role, all in one call where they fit; what a role asks as the empty prompt does is asked
    once."""
    asked = {role: _asking_more(role, rows) for role in rows}
    together = Conditioning.cat([rows[role][which] for role, which in asked.items()])
    places = [place for which in asked.values() for place in which]
    predicted = batches.predict(model, z[places], t[places], together, progress)
    parts = dict(zip(asked, torch.split(predicted, [len(which) for which in asked.values()]), strict=True))
    return {role: _put_back(part, asked[role], parts.get(EMPTY)) for role, part in parts.items()}


def _put_back(part: Tensor, rows: Sequence[int], empty: Tensor | None) -> Tensor:
    """Predictions of some rows with those of the empty prompt in the other rows."""
    if empty is None or len(rows) == len(empty):
        return part
    return empty.index_copy(0, torch.tensor(rows, dtype=torch.long, device=empty.device), part)


def _asking_more(role: str, rows: Mapping[str, Conditioning]) -> list[int]:
    """The rows in which a role asks something else than the empty prompt."""
    given, empty = rows[role], rows.get(EMPTY)
    if role == EMPTY or empty is None or given.image is not None or empty.image is not None:
        return list(range(len(given)))
    same = (given.context == empty.context).flatten(1).all(dim=1)
    if given.pooled is not None and empty.pooled is not None:
        same = same & (given.pooled == empty.pooled).flatten(1).all(dim=1)
    return [row for row, is_same in enumerate(same.tolist()) if not is_same]
