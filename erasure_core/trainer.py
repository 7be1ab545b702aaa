"""Trains the deltas of one erasure: any method's loss, any loaded model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint, save_checkpoint
from .concept import Concept
from .delta import Delta, DeltaSet, LowRankDelta, fan_in, new_deltas, weight_of
from .errors import Cancelled, TrainingFailed
from .layers import is_text, reads_context, select
from .methods.registry import Method, TrainingSettings
from .model import Conditioning, LoadedModel
from .progress import Progress, Report
from .trajectory import EMPTY, PROMPT, Draw, PoolSettings, TrajectoryPool, draw_pool

CONTEXT_WIDTH, FEATURE_WIDTH = 768, 320
"""Layer widths of SD1.5, for which learning rates are given."""
SAVE_EVERY = 60.0
CHECK_EVERY = 25
"""Steps between two measurements of the early-stop criterion."""


@dataclass
class Step:
    """What a loss gets to see: two batches of states, and the student's predictions on request.

    Args:
        concept: states of trajectories towards the concept.
        kept: states of trajectories towards prompts that must not change.
        trainer: makes the student's predictions.
    """

    concept: Draw
    kept: Draw
    trainer: Trainer

    def predict(self, *draws: Draw) -> list[Tensor]:
        """The student's predictions for the draws' own prompts, all in one call."""
        return self.trainer.predict([(draw, draw.prompts) for draw in draws])

    def predict_empty(self, draw: Draw) -> Tensor:
        """The student's prediction at the draw's states for the empty prompt."""
        return self.trainer.predict([(draw, [""] * len(draw.prompts))])[0]


@dataclass
class History:
    """What happened in training: loss terms per step and the residual guidance where it was measured."""

    losses: list[dict[str, float]] = field(default_factory=list)
    residual_guidance: list[tuple[int, float]] = field(default_factory=list)


def learning_rates(name: str, layer: nn.Module, delta: Delta, base: float) -> Iterator[tuple[nn.Parameter, float]]:
    """Each parameter of a delta with its Adam learning rate.

    Adam moves every entry by about the learning rate, so the output of a layer moves by fan-in times as much. Scaling
    with 1/fan-in makes one setting move a wide and a narrow layer equally far. ``up`` of a low-rank delta reads the
    normalised output of ``down``, whose scale does not depend on the width, so its rate stays as it is.
    """
    reference = CONTEXT_WIDTH if reads_context(name) or is_text(name) else FEATURE_WIDTH
    relative = base * reference / fan_in(weight_of(layer).shape)
    if isinstance(delta, LowRankDelta):
        yield delta.down, relative
        yield delta.up, base
    else:
        for parameter in delta.parameters():
            yield parameter, relative


class Trainer:
    """One training run. Create it, then call ``run``.

    Args:
        model: the loaded model; never changed.
        concept: what to erase and keep.
        method: a registered method with a loss.
        settings: its settings.
        progress: reports and cancellation.
        checkpoint: where the resumable state goes; ``None`` keeps none.
        save_every: seconds between two saves of that state.
    """

    def __init__(
        self,
        model: LoadedModel,
        concept: Concept,
        method: Method,
        settings: TrainingSettings,
        progress: Progress,
        checkpoint: Path | None = None,
        save_every: float = SAVE_EVERY,
    ) -> None:
        self.model, self.concept, self.method, self.settings = model, concept, method, settings
        self.progress, self.checkpoint, self.save_every = progress, checkpoint, save_every
        self.layers = select(model.layers(), settings.layers)
        self.deltas = new_deltas(self.layers, settings.rank, settings.seed).to(model.device)
        self.trains_text = any(is_text(name) for name in self.layers)
        rates = [
            {"params": [parameter], "lr": rate}
            for name, layer in self.layers.items()
            for parameter, rate in learning_rates(name, layer, self.deltas[name], settings.learning_rate)
        ]
        self.optimizer = torch.optim.AdamW(rates, weight_decay=0.0, betas=(0.9, 0.99))
        self.step, self.history = 0, History()
        self.pools: dict[str, TrajectoryPool] = {}
        self._updating = False
        # Gradients of a float16 network underflow unless the loss is scaled up (Micikevicius et al. 2018).
        self.loss_scale = 4096.0 if model.dtype == torch.float16 else 1.0
        self._encoded: dict[str, Conditioning] = {}

    def run(self) -> tuple[DeltaSet, History]:
        """Train to the end, or to the early stop.

        Raises:
            Cancelled: the user stopped; the state is saved.
            TrainingFailed: the loss became NaN or infinite; the last saved state is kept.
        """
        with self.model.trainable(self.settings.checkpointing), self.deltas.attached(self.layers):
            if self.checkpoint is not None and self.checkpoint.exists():
                load_checkpoint(self.checkpoint, self)
            self._loop()
        return self.deltas, self.history

    def _loop(self) -> None:
        saved = time.monotonic()
        try:
            while self.step < self.settings.steps:
                if self.progress.cancelled():
                    raise Cancelled(f"Stopped at step {self.step} of {self.settings.steps}.")
                self._refresh_pools()
                if self._reached_goal():
                    break
                self._optimise()
                if time.monotonic() - saved >= self.save_every:
                    self._save()
                    saved = time.monotonic()
        except TrainingFailed:
            raise
        except BaseException:
            # Hosts interrupt with exceptions of their own, from any operation. Weights and moments change together
            # inside the optimiser only, so everywhere else the state is that of a finished step.
            if not self._updating:
                self._save()
            raise

    def _save(self) -> None:
        # Before the first pool is complete there is nothing worth keeping.
        if self.checkpoint is not None and self.pools:
            save_checkpoint(self.checkpoint, self)

    def pool_roles(self) -> dict[str, dict[str, Sequence[str]]]:
        """For each pool the prompts of each role."""
        pairs = self.concept.prompts()
        erased = [prompt for prompt, _ in pairs]
        kept = list(self.concept.kept_prompts)
        concept: dict[str, Sequence[str]] = {EMPTY: [""] * len(erased), PROMPT: erased}
        if self.concept.alternative is not None:
            concept["alternative"] = [instead for _, instead in pairs]
        return {"concept": concept, "kept": {EMPTY: [""] * len(kept), PROMPT: kept}}

    def _refresh_pools(self) -> None:
        """Draw the pools anew when their time has come. Chance depends on seed and step alone: a resumed run agrees."""
        s = self.settings
        if self.step % s.refresh and self.pools:
            return
        size = PoolSettings(s.trajectories, s.trajectory_steps, s.guidance)
        fresh = {}
        for place, (name, roles) in enumerate(self.pool_roles().items()):
            generator = self._chance(2 * self.step + place)
            driver = s.driver if name == "concept" else "original"
            fresh[name] = draw_pool(self.model, roles, size, generator, self.progress, self.deltas, driver)
        self.pools = fresh

    def _chance(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.settings.seed * 1_000_003 + number) % 2**63)

    def _optimise(self) -> None:
        s = self.settings
        losses: dict[str, float] = {}
        for part in range(s.accumulate):
            generator = self._chance(1_000_000_007 + self.step * s.accumulate + part)
            concept, kept = (self.pools[name].draw(s.batch, generator) for name in ("concept", "kept"))
            assert self.method.loss is not None
            terms = self.method.loss(s, Step(concept, kept, self))
            total = torch.stack(list(terms.values())).sum() / s.accumulate
            (total * self.loss_scale).backward()  # type: ignore[no-untyped-call]
            for name, term in terms.items():
                losses[name] = losses.get(name, 0.0) + term.item() / s.accumulate
        self._guard(losses)
        if not self._gradients_are_usable():
            return
        self._updating = True
        self.optimizer.step()
        self.step += 1
        self.history.losses.append(losses)
        self._updating = False
        self.optimizer.zero_grad()
        self.progress.update(Report("training", self.step, s.steps, losses))

    def _guard(self, losses: dict[str, float]) -> None:
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingFailed(
                f"The loss became {max(losses.values(), key=lambda v: not math.isfinite(v))} at step {self.step + 1}; "
                f"nothing was written. Lower the learning rate (now {self.settings.learning_rate:g})."
            )

    def _gradients_are_usable(self) -> bool:
        """Undo the loss scaling. After an overflow in float16 the scale is halved and the step repeated.

        Raises:
            TrainingFailed: gradients are not finite for another reason.
        """
        gradients = [p.grad for p in self.deltas.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, self.loss_scale)
        finite = bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all())
        if not finite:
            self.optimizer.zero_grad()
            if self.loss_scale <= 1.0:
                raise TrainingFailed(
                    f"The gradient is not a finite number at step {self.step + 1}; nothing was written. "
                    f"Lower the learning rate (now {self.settings.learning_rate:g})."
                )
            self.loss_scale /= 2
        return finite

    def _reached_goal(self) -> bool:
        if self.settings.stop_below is None or self.step % CHECK_EVERY:
            return False
        probe = self.pools["concept"].draw(4 * self.settings.batch, self._chance(500_000_003 + self.step))
        residual = self.residual_guidance(probe)
        self.history.residual_guidance.append((self.step, residual))
        return residual < self.settings.stop_below

    @torch.no_grad()
    def residual_guidance(self, draw: Draw) -> float:
        """<g, g0> / ||g0||^2: the share of the original guidance towards the concept that is left."""
        prompt, empty = self.predict([(draw, draw.prompts), (draw, [""] * len(draw.prompts))])
        original = draw.guidance
        return float(((prompt - empty) * original).sum() / original.pow(2).sum())

    def predict(self, wanted: Sequence[tuple[Draw, list[str]]]) -> list[Tensor]:
        """The student's predictions at each draw's states for the given prompts, in one call."""
        conditioning = self._conditioning([prompt for _, prompts in wanted for prompt in prompts])
        latents = torch.cat([draw.latents for draw, _ in wanted])
        t = torch.cat([draw.t for draw, _ in wanted])
        predicted = self.model.predict(latents, t, conditioning)
        return list(torch.split(predicted, [len(draw.t) for draw, _ in wanted]))

    def _conditioning(self, prompts: list[str]) -> Conditioning:
        """Encoded prompts: fresh where the text encoder learns, else encoded once."""
        distinct = list(dict.fromkeys(prompts))
        if self.trains_text:
            return self.model.encode(distinct)[[distinct.index(prompt) for prompt in prompts]]
        missing = [prompt for prompt in distinct if prompt not in self._encoded]
        if missing:
            encoded = self.model.encode(missing).detach()
            self._encoded.update({prompt: encoded[[i]] for i, prompt in enumerate(missing)})
        return Conditioning.cat([self._encoded[prompt] for prompt in prompts])
