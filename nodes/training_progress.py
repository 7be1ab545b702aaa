"""Shows running work on its node: bar, time left, losses and preview pictures; and asks for Interrupt."""

from __future__ import annotations

import time
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from PIL import Image

from ..erasure_core import guard
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.progress import Report, Silent
from ..erasure_core.sampling import sample
from .host import ConceptRequest, say, tell

PREVIEW_STEPS = 12
PREVIEW_GUIDANCE = 5.0
PREVIEW_SIZE = 512
TELL_EVERY = 0.3
"""Seconds between two messages to the browser."""


def preview_prompts(request: ConceptRequest) -> list[str]:
    """The concept, unless it must not be shown, and a kept prompt that may be."""
    kept = next((prompt for prompt in request.concept.keep if not guard.is_explicit_prompt(prompt)), "a photo")
    return [kept] if is_hidden(request) else [f"a {request.concept.name}", kept]


def is_hidden(request: ConceptRequest) -> bool:
    """Whether no picture of a concept is made: its user says so, or its words do, whatever the user says."""
    return request.explicit or guard.is_explicit(request.concept)


@torch.no_grad()
def preview_latents(model: ComfyModel, request: ConceptRequest) -> torch.Tensor:
    """Latents of the preview prompts from fixed noise; the model as it is now."""
    prompts = preview_prompts(request)
    return sample(model, prompts, [0] * len(prompts), PREVIEW_STEPS, PREVIEW_GUIDANCE, progress=Stoppable())


def rough_pictures(model: ComfyModel, latents: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [B, 3, H, W] by the host's linear approximation, which moves no network between devices."""
    latent_format = model.patcher.model.latent_format
    factors = torch.tensor(latent_format.latent_rgb_factors, dtype=torch.float32)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    rgb = torch.einsum("bchw,cr->brhw", latents.float().cpu(), factors)
    rgb = rgb if bias is None else rgb + torch.tensor(bias)[:, None, None]
    shown = ((rgb + 1) * 127.5).clamp(0, 255)
    return torch.nn.functional.interpolate(shown, scale_factor=8.0).to(torch.uint8)


class Stoppable(Silent):
    """Shows nothing; cancels with the host's Interrupt."""

    def cancelled(self) -> bool:
        return bool(mm.processing_interrupted())


class BarProgress(Stoppable):
    """The host's bar, and a line on the node with the stage and the time left.

    Args:
        node_id: the node in the running graph.
    """

    def __init__(self, node_id: str | None) -> None:
        self.node_id, self.bar = node_id, comfy.utils.ProgressBar(1, node_id=node_id)
        self.started, self.first_step, self.stage, self.told = time.monotonic(), 0, "", 0.0
        self.step = 0

    def update(self, report: Report) -> None:
        if report.note:
            say(self.node_id, report.note)
            return
        if report.stage != self.stage or report.step < self.step:
            self.stage, self.started, self.first_step = report.stage, time.monotonic(), report.step
            # A bar of its own: newer hosts do not show one that goes back.
            self.bar = comfy.utils.ProgressBar(max(1, report.total), node_id=self.node_id)
        self.step = report.step
        self.bar.update_absolute(report.step, report.total, self._preview(report))
        now = time.monotonic()
        if now - self.told >= TELL_EVERY or report.step == report.total:
            self.told = now
            self._tell(report)

    def _preview(self, report: Report) -> Any:
        return None

    def _tell(self, report: Report) -> None:
        say(self.node_id, self._line(report))

    def _line(self, report: Report) -> str:
        left = self._seconds_left(report)
        rest = f", {_time(left)} left" if left is not None and report.step < report.total else ""
        return f"{report.stage} {report.step}/{report.total}{rest}"

    def _seconds_left(self, report: Report) -> float | None:
        done = report.step - self.first_step
        return None if done < 1 else (time.monotonic() - self.started) / done * (report.total - report.step)


class SearchProgress(BarProgress):
    """As ``BarProgress``, but Interrupt only asks: a stopped search still hands over what it has found."""

    def __init__(self, node_id: str | None) -> None:
        super().__init__(node_id)
        self.stopped = False

    def cancelled(self) -> bool:
        self.stopped = self.stopped or super().cancelled()
        return self.stopped

    def update(self, report: Report) -> None:
        if self.cancelled():
            return
        try:
            super().update(report)
        except mm.InterruptProcessingException:  # the bar raises it, and takes the request back
            self.stopped = True


class NodeProgress(BarProgress):
    """Progress of one Erase node, with losses and preview pictures.

    Args:
        node_id: the node in the running graph.
        model: makes the previews.
        request: their prompts.
        preview_every: training steps between two previews; 0 for none.
    """

    def __init__(self, node_id: str | None, model: ComfyModel, request: ConceptRequest, preview_every: int) -> None:
        super().__init__(node_id)
        self.model, self.request, self.preview_every = model, request, preview_every
        self.points: list[tuple[int, dict[str, float]]] = []

    def update(self, report: Report) -> None:
        if report.losses is not None:
            self.points.append((report.step, report.losses))
        super().update(report)

    def _tell(self, report: Report) -> None:
        loss = ", ".join(f"{name} {value:.4f}" for name, value in (report.losses or {}).items())
        say(self.node_id, self._line(report) + (f"\n{loss}" if loss else ""))
        data = {"node": self.node_id, "stage": report.stage, "step": report.step, "total": report.total}
        tell("progress", {**data, "seconds_left": self._seconds_left(report), "losses": self.points})
        self.points = []

    def _preview(self, report: Report) -> Any:
        wanted = report.stage == "training" and self.preview_every and report.step % self.preview_every == 0
        if not wanted:
            return None
        pictures = rough_pictures(self.model, preview_latents(self.model, self.request))
        side_by_side = torch.cat(list(pictures), dim=-1).movedim(0, -1).numpy()
        return ("JPEG", Image.fromarray(side_by_side), PREVIEW_SIZE)


def _time(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
