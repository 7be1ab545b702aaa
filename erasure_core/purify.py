"""Take a concept out of a given picture: follow it back to noise, and paint it again with the erased model.

From All but One (arXiv 2312.12807): DDIM inversion (Song et al. 2021; Dhariwal & Nichol 2021, app. F) with the empty
prompt at guidance 1, then sampling with the erasure applied and a caption that says the concept, which the erased model
reads as what takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import guard
from .batches import Batches
from .concept import said_word
from .delta import DeltaSet
from .erasing import applied
from .errors import Cancelled, InvalidConcept, InvalidSettings, raising_out_of_memory
from .manifest import Manifest
from .model import PATCH, Conditioning, LoadedModel
from .progress import Progress, Report, Silent
from .sampling import finite, guided_step, onwards


def caption_misses(caption: str, manifests: Iterable[Manifest | None]) -> str:
    """A sentence for people where a caption says nothing of what erasures erase, so that a picture hardly changes;
    empty where it does, or where a file does not tell what it erases."""
    known = [manifest.words for manifest in manifests if manifest is not None]
    words = tuple(dict.fromkeys(word for own in known for word in own))
    if not words or said_word(caption, words):
        return ""
    return f"The caption says nothing of what is erased ({', '.join(words[:5])}), so pictures hardly change: name it."


def painted_size(model: LoadedModel, height: int, width: int) -> tuple[int, int]:
    """The height and width in pixels at which a picture of a height and width is painted again.

    Its proportions and the area that the model was made for, as near as whole steps of the network come to them: each
    time that it halves its latents doubles a step. Of a strip so long that its other side is one step the ends are cut.
    """
    halvings = sum(".downsamplers." in name for name in model.layers())
    step = PATCH * 2**halvings
    area = PATCH**2 * math.prod(model.latent_shape[1:])
    scale = math.sqrt(area / (height * width)) / step
    most = max(1, area // step**2)
    rows, columns = (min(most, max(1, round(side * scale))) for side in (height, width))
    return step * rows, step * columns


@torch.no_grad()
@raising_out_of_memory()
def invert(
    model: LoadedModel, latents: Tensor, steps: int = 50, share: float = 1.0, progress: Progress | None = None
) -> Tensor:
    """The noisy latents from which DDIM with the empty prompt leads back to given pictures.

    Args:
        model: the loaded model.
        latents: clean pictures [B, C, H, W].
        steps: DDIM steps of the whole way.
        share: of the way that is gone back, 0 to 1.
        progress: reports and cancellation.

    Raises:
        Cancelled: the user stopped.
        InvalidSettings: the share is not between 0 and 1.
        OutOfMemory: the device has too little memory for one picture.
    """
    progress = progress or Silent()
    empty = model.encode([""])[[0] * len(latents)]
    ascending = _way(model, steps, share)[::-1]
    predict = Batches(len(latents)).predictor(model)  # all at once, where they fit
    z, now = latents.to(model.device), -1
    for i, following in enumerate(ascending):
        _ask(progress, "inverting", i, len(ascending))
        t_next = torch.full((len(z),), following, device=model.device)
        # The prediction belongs to the next, noisier timestep; the step between them is small.
        predicted = predict(z, t_next, empty)
        z = model.schedule.step_back(z, torch.full_like(t_next, now), t_next, predicted)
        now = following
    return z


def _way(model: LoadedModel, steps: int, share: float) -> list[int]:
    if not 0 < share <= 1:
        raise InvalidSettings(f"The share of the way back is {share}; it must lie above 0 and be at most 1.")
    timesteps = model.schedule.timesteps(steps)
    return timesteps[len(timesteps) - max(1, round(share * steps)) :]


def _ask(progress: Progress, stage: str, step: int, total: int) -> None:
    if progress.cancelled():
        raise Cancelled("Stopped while purifying.")
    progress.update(Report(stage, step, total))


def check_captions(captions: Sequence[str]) -> None:
    """Refuse what must not be painted, with whatever erasure: an erasure may leak.

    Raises:
        InvalidConcept: a caption combines minors with sexual content.
    """
    if any(guard.is_forbidden(caption) for caption in captions):
        raise InvalidConcept("Sexual content about minors is not painted; change the caption.")


@torch.no_grad()
@raising_out_of_memory()
def purify(
    model: LoadedModel,
    latents: Tensor,
    captions: Sequence[str],
    erasures: Sequence[tuple[DeltaSet, float]],
    steps: int = 50,
    guidance: float = 5.0,
    share: float = 0.8,
    progress: Progress | None = None,
) -> Tensor:
    """Paint given pictures again without the concept.

    Args:
        model: the loaded model, without erasures.
        latents: clean pictures [B, C, H, W].
        captions: one for each picture; they may say the concept.
        erasures: what is applied while the pictures are painted again.
        steps: DDIM steps of the whole way.
        guidance: classifier-free guidance scale towards the caption.
        share: of the way that is gone back: less keeps more of the picture, and more of the concept.
        progress: reports and cancellation.

    Returns:
        Clean latents [B, C, H, W].

    Raises:
        Cancelled: the user stopped.
        InvalidConcept: a caption combines minors with sexual content.
        InvalidSettings: the share is not between 0 and 1.
        ModelError: the picture is made of no finite numbers.
        OutOfMemory: the device has too little memory for one picture.
        PromptTooLong: a caption has more tokens than the text encoder reads.
    """
    # Here and not in the front ends: whoever paints by a caption comes through this door.
    check_captions(captions)
    progress = progress or Silent()
    z = invert(model, latents, steps, share, progress)
    timesteps = _way(model, steps, share)
    predict = Batches(2 * len(z)).predictor(model)
    with applied(model, erasures):
        both = Conditioning.cat([model.encode([""] * len(z)), model.encode(list(captions))])
        for i, now_and_next in enumerate(onwards(timesteps)):
            _ask(progress, "painting again", i, len(timesteps))
            z = guided_step(model.schedule, predict, z, now_and_next, both, guidance)
    return finite(z, model)
