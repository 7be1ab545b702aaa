"""What the model paints of a concept and of a kept prompt: while it is trained, and without and with an erasure."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image

from erasure_core import guard
from erasure_core.concept import Concept
from erasure_core.delta import DeltaSet
from erasure_core.erasing import applied
from erasure_core.hosts.webui import WebuiModel
from erasure_core.progress import Progress, Report
from erasure_core.sampling import sample

from . import places
from .working import as_pictures

STEPS, GUIDANCE = 12, 5.0


def prompts(concept: Concept) -> list[str]:
    """The concept, unless it is one that must not be shown, and a kept prompt."""
    kept = next((prompt for prompt in concept.keep if not guard.is_explicit_prompt(prompt)), "a photo")
    return [kept] if guard.is_explicit(concept) else [f"a {concept.name}", kept]


class Preview:
    """Paints every so many training steps; it never changes what is trained. Nothing is painted while a safety profile
    is in force: the prompts to keep are free, and the profile is not on a model that is trained.

    Args:
        model: the loaded model, on which the change hangs while it is trained.
        concept: what is erased.
        every: training steps between two previews; 0 for none.
    """

    def __init__(self, model: WebuiModel, concept: Concept, every: int) -> None:
        self.model, self.prompts, self.every = model, prompts(concept), every

    @torch.no_grad()
    def after(self, report: Report, progress: Progress) -> Image.Image | None:
        """Pictures side by side; nothing if it is not the time. Raises Cancelled if the user stops meanwhile."""
        if report.stage != "training" or not self.every or report.step % self.every or places.is_in_force():
            return None
        seeds = [0] * len(self.prompts)
        latents = sample(self.model, self.prompts, seeds, STEPS, GUIDANCE, progress=_Asking(progress))
        return _sheet([as_pictures(self.model.decode(latents))])


def before_and_after(model: WebuiModel, concept: Concept, deltas: DeltaSet, progress: Progress) -> str:
    """Two rows of pictures from the same noise, without and with an erasure, as base64 of a JPEG. Call it only while no
    safety profile is in force, as of ``Preview``. Raises Cancelled if the user stops meanwhile."""
    asked = prompts(concept)
    rows = []
    with model.trainable(), torch.no_grad():
        for erasures in ([], [(deltas, 1.0)]):
            with applied(model, erasures):
                latents = sample(model, asked, [0] * len(asked), STEPS, GUIDANCE, progress=progress)
            rows.append(as_pictures(model.decode(latents)))
    content = io.BytesIO()
    _sheet(rows).save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()


class _Asking:
    """Asks the work's own Interrupt; the steps of a preview are not shown as steps of the work."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def update(self, report: Report) -> None:
        return None

    def cancelled(self) -> bool:
        return self.progress.cancelled()


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size, in rows."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            sheet.paste(picture, (right * width, down * height))
    return sheet
