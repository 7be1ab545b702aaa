"""Trains the deltas of one erasure: any method's loss, any loaded model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from .batches import Batches
from .broken_model import check_model
from .checkpoint import identity, load_checkpoint, save_checkpoint
from .concept import TEMPLATES, Concept, worded
from .concept_pictures import ConceptPictures
from .delta import DeltaSet, new_deltas
from .errors import (
    Cancelled,
    DeviceOutOfMemory,
    ModelError,
    OutOfMemory,
    OutputError,
    TrainingFailed,
    telling_memory,
)
from .history import History
from .layers import is_text, select
from .methods.registry import Method, TrainingSettings, find_method
from .model import Conditioning, LoadedModel, each_once, encode_in_pieces, has_room
from .progress import Progress, Report
from .rates import rate_groups
from .run_state import RunState
from .sampling import scaled_sides
from .trajectory import (
    ALTERNATIVE,
    EMPTY,
    ORIGINAL,
    PROMPT,
    WITHOUT,
    Draw,
    Goal,
    PoolSettings,
    TrajectoryPool,
    draw_pool,
)
from .warm_start import start_from

SAVE_EVERY = 60.0
CHECK_EVERY = 25
"""Steps between two measurements of the early-stop criterion."""
MIN_LOSS_SCALE, HALF_LOSS_SCALE = 1.0, 2.0**16
"""What the loss is multiplied by. Gradients of a float16 network underflow unless it is scaled up (Micikevicius et al.
2018); where they overflow the step is tried again with half of it. The larger the pictures, the less each of their
numbers counts in a mean: so it begins where torch's own scaler does."""
PLAIN = 2
"""So many of the templates make prompts that are in every pool: the bare word, and that with an article."""


@dataclass
class Step:
    """What a loss gets to see: two batches of states, and the student's predictions on request.

    Args:
        concept: states of trajectories towards the concept.
        kept: states of trajectories towards prompts that must not change.
        trainer: makes the student's predictions.
        generator: of this step's chance.
    """

    concept: Draw
    kept: Draw
    trainer: Trainer
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def state(self) -> RunState:
        """What the method carries through the run."""
        return self.trainer.state

    def predict(self, *draws: Draw) -> list[Tensor]:
        """The student's predictions for the draws' own prompts, all in one call."""
        return self.trainer.predict([(draw, draw.prompts) for draw in draws])


@contextmanager
def picture_scale(model: LoadedModel, scale: float) -> Iterator[None]:
    """Inside, the model's latents have sides ``scale`` times as long (``scaled_sides``)."""
    before = model.latent_shape
    model.latent_shape = (before[0], *scaled_sides(before, scale))
    try:
        yield
    finally:
        model.latent_shape = before


def train(
    model: LoadedModel,
    concept: Concept,
    method: Method,
    settings: TrainingSettings,
    progress: Progress,
    checkpoint: Path | None = None,
    save_every: float = SAVE_EVERY,
    pictures: ConceptPictures | None = None,
    start: DeltaSet | None = None,
) -> tuple[DeltaSet, History]:
    """Train to the end, or to the early stop, on from ``checkpoint`` if that exists.

    Args:
        model: the loaded model; never changed.
        concept: what to erase and keep.
        method: a registered method with a loss.
        settings: its settings.
        progress: reports and cancellation.
        checkpoint: where the resumable state goes; ``None`` keeps none.
        save_every: seconds between two saves of that state.
        pictures: of the concept, for methods that read them.
        start: a finished change to go on from, in the place of nothing; not with a checkpoint.

    Raises:
        Cancelled: the user stopped; the state is saved.
        OutOfMemory: the device has too little memory; the state, if training had begun, is saved.
        TrainingFailed: the loss became NaN or infinite; the last saved state is kept.
        OtherTraining: ``checkpoint`` is of a training with another concept, method, settings or model.
        InvalidFile: ``checkpoint`` is damaged.
        ModelError: the host never runs a chosen layer, or the model's own weights are not finite.
        InvalidSettings: the model has no such layers, ``start`` does not fit what is trained, or the host cannot be
            asked what the method needs.
    """
    with telling_memory(), model.trainable(settings.checkpointing), picture_scale(model, settings.picture_scale):
        trainer = Trainer(model, concept, method, settings, progress, checkpoint, save_every, pictures, start)
        with trainer.deltas.attached(trainer.layers), trainer.state.attached():
            if checkpoint is not None and checkpoint.exists():
                load_checkpoint(checkpoint, trainer)
            trainer.run()
    return trainer.deltas, trainer.history


class Trainer:
    """One training run; arguments as of ``train``. Made and run inside ``model.trainable()``, deltas attached."""

    def __init__(
        self,
        model: LoadedModel,
        concept: Concept,
        method: Method,
        settings: TrainingSettings,
        progress: Progress,
        checkpoint: Path | None = None,
        save_every: float = SAVE_EVERY,
        pictures: ConceptPictures | None = None,
        start: DeltaSet | None = None,
    ) -> None:
        self.model, self.concept, self.method, self.settings = model, concept, method, settings
        self.progress, self.checkpoint, self.save_every = progress, checkpoint, save_every
        self.pictures = pictures
        self.sayings = {
            saying.prompt: saying for saying in concept.sayings(settings.contexts, partial(has_room, model))
        }
        self.layers = select(model.layers(), settings.layers)
        self.identity = identity(model, concept, method.name, settings, self.layers, pictures) if checkpoint else ""
        self.deltas = new_deltas(self.layers, settings.rank, settings.seed).to(model.device)
        if start is not None:
            start_from(self.deltas, start)
        elif settings.start == "closed_form":
            self._start_from_closed_form()
        self.trains_text = any(is_text(name) for name in self.layers)
        groups = rate_groups(self.layers, self.deltas, settings.learning_rate)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.99))
        self.step, self.history = 0, History()
        self.state, self.prepared = method.state(self), 0
        self.pools: dict[str, TrajectoryPool] = {}
        self.loss_scale = HALF_LOSS_SCALE if model.dtype == torch.float16 else MIN_LOSS_SCALE
        self._updating = self._all_ran = False
        self._encoded: Conditioning | None = None
        self._places: dict[str, int] = {}

    def run(self) -> None:
        """Train on from the present state; raises as ``train``."""
        try:
            with telling_memory():
                self.begin()
                self._loop()
                self._close()
        except (TrainingFailed, ModelError):
            raise
        except DeviceOutOfMemory as error:
            if not self._updating:
                self._save()
            raise OutOfMemory(self._too_little_memory()) from error
        except BaseException:
            # Hosts interrupt with exceptions of their own, from any operation. Weights and moments change together
            # inside the optimiser only, so everywhere else the state is that of a finished step.
            if not self._updating:
                self._save()
            raise
        self._save()

    def begin(self) -> None:
        """What comes before all steps: prompts that are encoded once, and the method's state, unless a training goes
        on."""
        self._encode_prompts()
        if not (self.step or self.pools):
            self.state.tensors = self.state.begin()

    def _loop(self) -> None:
        saved = time.monotonic()
        while self.step < self.settings.steps:
            if self.progress.cancelled():
                raise Cancelled(f"Stopped at step {self.step} of {self.settings.steps}.")
            self.refresh_pools()
            if self._reached_goal():
                break
            self.prepare_step()
            self._optimise()
            if time.monotonic() - saved >= self.save_every:
                self._save()
                saved = time.monotonic()

    def _too_little_memory(self) -> str:
        """What a user reads once ``within_memory`` has no smaller batch or picture left to try: what else can be less,
        and whether there is a state to go on from."""
        device = "" if self.model.device.type == "cpu" else ", or on the CPU"
        kept = self.checkpoint is not None and self.checkpoint.exists()
        return (
            f"The device has too little memory for this training, even in the smallest pieces. Free some"
            f"{' and go on with it' if kept else ''}, or start anew with smaller pictures, a lower rank or fewer "
            f"layers{device}."
        )

    def _close(self) -> None:
        """Note the method's last figures, once also where a finished training is loaded again. Too little memory for
        them must not lose the training."""
        try:
            with telling_memory():
                figures = self.state.closing()
        except DeviceOutOfMemory:
            self._tell("Too little memory for the last figures")
            return
        if figures and self.history.figures[-1:] != [(self.step, figures)]:
            self.history.figures.append((self.step, figures))

    def prepare_step(self) -> None:
        """Let the method's state move on, once for each step also where a run is stopped in the middle of it."""
        if self.prepared > self.step:
            return
        coming = self.state.before_step()
        self._updating = True
        if coming is not self.state.tensors:
            self.state.tensors = coming
            self.history.figures.append((self.step, self.state.figures()))
        self.prepared = self.step + 1
        self._updating = False

    def _save(self) -> None:
        """Save the resumable state. That must not stop a training that could go on, nor hide why it stops."""
        if self.checkpoint is None or not (self.step or self.pools):
            return
        try:
            save_checkpoint(self.checkpoint, self)
        except OutputError as error:
            self._tell(f"The state to go on from is not saved: {error}")

    def _tell(self, note: str) -> None:
        self.progress.update(Report("training", self.step, self.settings.steps, note=note))

    def pool_roles(self) -> dict[str, dict[str, Sequence[str]]]:
        """For each pool the prompts of each role."""
        # The plain ones first: they are what users type, and must be in every pool.
        plain = {worded(template, word) for template in TEMPLATES[:PLAIN] for word in self.concept.words}
        said = sorted(self.sayings.values(), key=lambda saying: saying.prompt not in plain)
        without = [saying.without for saying in said]
        concept: dict[str, Sequence[str]] = {EMPTY: [""] * len(said), PROMPT: [saying.prompt for saying in said]}
        if any(without):
            concept[WITHOUT] = without
        if self.concept.has_alternative:
            concept[ALTERNATIVE] = [saying.instead for saying in said]
        kept = list(dict.fromkeys([*self.concept.kept_prompts, *without]))
        return {"concept": concept, "kept": {EMPTY: [""] * len(kept), PROMPT: kept}}

    def refresh_pools(self) -> None:
        """Draw the pools anew when their time has come. Chance depends on seed and step alone: a resumed run agrees."""
        s = self.settings
        if self.pools and not self.state.pools_are_due():
            return
        self.pools = {}  # before the new ones come, so that both need not fit
        size = PoolSettings(s.trajectories, s.trajectory_steps, s.guidance, s.max_batch)
        fresh = {}
        for place, (name, roles) in enumerate(self.pool_roles().items()):
            generator = self.chance(2 * self.step + place)
            always = 1 + len(self.concept.keep) if name == "kept" else PLAIN * len(self.concept.words)
            driver, goal = (s.driver, self._goal) if name == "concept" else (ORIGINAL, None)
            encode, teacher = partial(self.state.encode_role, name), self.state.teacher(name)
            fresh[name] = draw_pool(
                self.model,
                roles,
                size,
                generator,
                self.progress,
                self.deltas,
                driver=driver,
                teacher=teacher,
                encode=encode,
                goal=goal,
                always=always,
                unanswered=self.unanswered,
            )
        self.pools = fresh

    @cached_property
    def unanswered(self) -> frozenset[str]:
        """Prompts that say a word in whose place nothing is painted, where something is in that of another."""
        if not self.concept.has_alternative:
            return frozenset()
        bare = {word for words in self.concept.unanswered() for word in words}
        return frozenset(p for p, saying in self.sayings.items() if self.concept.words[saying.word] in bare)

    @property
    def _goal(self) -> Goal | None:
        return None if self.method.goal is None else partial(self.method.goal, self.settings)

    def _start_from_closed_form(self) -> None:
        solve = find_method("closed_form")
        assert solve.solve is not None
        start = solve.solve(self.model, self.concept, solve.settings(rank=self.settings.rank), self.progress)  # type: ignore[call-arg]
        start_from(self.deltas, start.to(self.model.device))

    @property
    def noisiest(self) -> int:
        """The bound below which the concept's states are trained."""
        return max(1, round(len(self.model.schedule) * (1 - self.settings.spare_layout)))

    def chance(self, number: int) -> torch.Generator:
        """A generator that depends on the seed and ``number`` alone."""
        return torch.Generator().manual_seed((self.settings.seed * 1_000_003 + number) % 2**63)

    def _optimise(self) -> None:
        losses = self._check(self._backward())
        while losses is None:
            losses = self._check(self._backward())
        if not self._all_ran:  # also where a training goes on, and before a step is counted that could be saved
            self._check_all_layers_ran()
            self._all_ran = True
        self._updating = True
        self._set_rates()
        self.optimizer.step()
        self.step += 1
        self.history.losses.append(losses)
        self._updating = False
        self.optimizer.zero_grad()
        self.progress.update(Report("training", self.step, self.settings.steps, losses))

    def _set_rates(self) -> None:
        """The learning rates of this step: towards the end they fall in a straight line, so that chance of the last
        batches does not stay in the result."""
        falling = self.settings.steps * self.settings.cool_down
        share = min(1.0, (self.settings.steps - self.step) / falling) if falling else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * share

    def _backward(self) -> dict[str, Tensor]:
        """Gradients of one step, summed over ``accumulate`` batches; returns the named loss terms, still unread."""
        s = self.settings
        losses: dict[str, Tensor] = {}
        for part in range(s.accumulate):
            generator = self.chance(1_000_000_007 + self.step * s.accumulate + part)
            concept = self.pools["concept"].draw(s.batch, generator, self.noisiest)
            kept = self.pools["kept"].draw(s.batch, generator)
            assert self.method.loss is not None
            terms = self.method.loss(s, Step(concept, kept, self, generator))
            total = torch.stack(list(terms.values())).sum() / s.accumulate
            (total * self.loss_scale).backward()  # type: ignore[no-untyped-call]
            self.state.after_backward()
            for name, term in terms.items():
                losses[name] = losses.get(name, 0.0) + term.detach() / s.accumulate
        return losses

    def _check(self, terms: dict[str, Tensor]) -> dict[str, float] | None:
        """Undo the loss scaling and read the loss terms: the one point of a step where the host waits for the device.

        Returns:
            The terms; ``None`` after an overflow in float16, with the scale halved to try the step again.

        Raises:
            TrainingFailed: a term is not finite, or gradients are not for another reason.
            ModelError: it is the model's own weights that are not finite.
        """
        gradients = [p.grad for p in self.deltas.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, self.loss_scale)
        usable = torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()
        *values, are_usable = torch.stack([*terms.values(), usable.to(torch.float32)]).tolist()
        losses = dict(zip(terms, values, strict=True))
        for name, value in losses.items():
            if not math.isfinite(value):
                raise self._failure(f"The loss ({name}) became {value}")
        if are_usable:
            return losses
        self.optimizer.zero_grad()
        if self.loss_scale <= MIN_LOSS_SCALE:
            raise self._failure("The gradient is not a finite number")
        self.loss_scale /= 2
        return None

    def _failure(self, what: str) -> TrainingFailed:
        check_model(self.model)
        if not self.step:  # nothing has been learned yet, so no learning rate is to blame
            return TrainingFailed(
                f"{what} at step 1, before anything was changed; nothing was written. The model's weights hold "
                "numbers that are too large or none, or its format is too narrow for them: get a fresh copy, or load "
                "it in float32."
            )
        rate = self.settings.learning_rate
        return TrainingFailed(
            f"{what} at step {self.step + 1}; nothing was written. Lower the learning rate (now {rate:g})."
        )

    def _check_all_layers_ran(self) -> None:
        if self.deltas.unused():
            name = self.deltas.unused()[0]
            raise ModelError(f"This host never runs {name} by itself, so it cannot be changed; choose other layers.")

    def _reached_goal(self) -> bool:
        goal, measured = self.settings.stop_below, self.history.residual_guidance
        if goal is None or self.step % CHECK_EVERY:
            return False
        if not measured or measured[-1][0] != self.step:
            probe = self.pools["concept"].draw(4 * self.settings.batch, self.chance(500_000_003 + self.step))
            measured.append((self.step, self.residual_guidance(probe)))
        return measured[-1][1] < goal

    @torch.no_grad()
    def residual_guidance(self, draw: Draw) -> float:
        """<g - G, g0 - G> / ||g0 - G||^2: the share of the original guidance towards the concept that is left, where G
        is the guidance towards the alternative, or nothing."""
        without = [self.sayings[prompt].without for prompt in draw.prompts]
        prompt, base = self.predict_in_pieces([(draw, draw.prompts), (draw, without)])
        towards = 0.0 if draw.towards is None else draw.towards
        original = draw.guidance - towards
        return float(((prompt - base - towards) * original).sum() / original.pow(2).sum())

    def predict(self, wanted: Sequence[tuple[Draw, list[str] | Conditioning]]) -> list[Tensor]:
        """The student's predictions at each draw's states for the given prompts, in one call."""
        predicted = self.model.predict(*self._asked(wanted))
        return list(torch.split(predicted, [len(draw.t) for draw, _ in wanted]))

    @torch.no_grad()
    def predict_in_pieces(self, wanted: Sequence[tuple[Draw, list[str] | Conditioning]]) -> list[Tensor]:
        """``predict`` for more states than a step has, without gradients, in calls of at most ``max_batch``."""
        predicted = Batches(self.settings.max_batch).predict(self.model, *self._asked(wanted), self.progress)
        return list(torch.split(predicted, [len(draw.t) for draw, _ in wanted]))

    def _asked(self, wanted: Sequence[tuple[Draw, list[str] | Conditioning]]) -> tuple[Tensor, Tensor, Conditioning]:
        """Latents, timesteps and conditionings of what is wanted, joined."""
        conditioning = Conditioning.cat(self._encode_together([given for _, given in wanted]))
        return torch.cat([draw.latents for draw, _ in wanted]), torch.cat([draw.t for draw, _ in wanted]), conditioning

    @torch.no_grad()
    def _encode_prompts(self) -> None:
        """Encode every prompt once, in a fixed order: the bits of an encoding depend on the batch it is made in, and a
        resumed run must have the same."""
        if not self.trains_text:
            prompts = [p for roles in self.pool_roles().values() for written in roles.values() for p in written]
            distinct = list(dict.fromkeys(["", *prompts]))
            self._encoded = encode_in_pieces(self.model, distinct)
            self._places = {prompt: i for i, prompt in enumerate(distinct)}

    def _encode_together(self, given: Sequence[list[str] | Conditioning]) -> list[Conditioning]:
        """Each list of prompts encoded, all in one call; what is encoded already stays."""
        texts = [prompt for prompts in given if isinstance(prompts, list) for prompt in prompts]
        encoded = self.encoded(texts) if texts else None
        parts, start = [], 0
        for prompts in given:
            if isinstance(prompts, Conditioning) or encoded is None:
                assert isinstance(prompts, Conditioning)
                parts.append(prompts)
            else:
                parts.append(encoded[range(start, start + len(prompts))])
                start += len(prompts)
        return parts

    def encoded(self, prompts: list[str]) -> Conditioning:
        """Encoded prompts of the pools: fresh where the text encoder learns, else those encoded at the start."""
        if self.trains_text:
            distinct, places = each_once(prompts)
            return self.model.encode(distinct)[places]
        assert self._encoded is not None
        return self._encoded[[self._places[prompt] for prompt in prompts]]
