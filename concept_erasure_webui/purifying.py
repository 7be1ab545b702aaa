"""Painting a given picture again on the loaded model, without what an erasure takes away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from erasure_core.concept_pictures import cut_to, upright_rgb
from erasure_core.erasure_file import read_erasure
from erasure_core.errors import InvalidSettings, raising_out_of_memory
from erasure_core.hosts.webui import WebuiModel
from erasure_core.hosts.webui_slots import Applied, Products
from erasure_core.library import read_manifest
from erasure_core.profile import bind_profile
from erasure_core.purify import caption_misses, painted_size, purify

from . import places
from .session import check_kept
from .wishes import Wish
from .working import HostProgress, Job, as_pictures, loaded_model


@torch.no_grad()
@raising_out_of_memory()
def run_purify(
    picture: Image.Image | None, caption: str, wishes: Sequence[Wish], steps: int, guidance: float, share: float
) -> list[Image.Image]:
    """Paint a picture again without what the erasures and the profile in force take away.

    Raises:
        ProfileFailed: the profile cannot be applied whole; nothing is painted.
        InvalidSettings: there is no picture or no erasure.
        ErasureError: as ``purify``, and for files that cannot be applied.
    """
    if picture is None:
        raise InvalidSettings("Give a picture.")
    job, model = Job("Purifying a picture"), loaded_model()
    if not wishes:
        raise InvalidSettings("Choose an erasure.")
    profile, asked = _profile(model), [_asked(wish, model) for wish in wishes]
    check_kept(profile, asked, Products())
    bound = [
        pair
        for one in (*asked, *profile)
        for pair in zip(one.deltas.apart(), (one.unet, one.text), strict=True)
        if len(pair[0])
    ]
    with model.trainable(), torch.no_grad():
        latents = model.latents_of(_pixels(picture, model))
        made = purify(model, latents, [caption], bound, steps, guidance, share, HostProgress(job, steps))
        return as_pictures(model.decode(made))


def caption_told(caption: str, wishes: Sequence[Wish]) -> str:
    """A sentence where a caption says nothing of what the erasures erase, or an empty text; raises InvalidFile."""
    return caption_misses(caption, [read_manifest(places.library().find(wish.file)) for wish in wishes])


def _asked(wish: Wish, model: WebuiModel) -> Applied:
    """A wish matched to the model; raises as ``StoredErasure.bind``, and InvalidFile."""
    deltas = read_erasure(places.library().find(wish.file)).bind(model, places.allows_other_bases())
    return Applied(wish.name, wish.file, deltas, wish.unet, wish.text)


def _profile(model: WebuiModel) -> list[Applied]:
    """The changes of the profile in force: whoever purifies writes the caption freely.

    Raises:
        ProfileFailed: it cannot be applied whole.
    """
    profile = places.profile()
    entries = bind_profile(profile, places.library(), model) if profile is not None else []
    return [
        Applied(one.entry.file, one.entry.file, one.deltas, one.entry.strength_unet, one.entry.strength_text)
        for one in entries
    ]


def _pixels(picture: Image.Image, model: WebuiModel) -> Tensor:
    """A picture at the size at which it is painted again, uint8 [1, 3, H, W]."""
    upright = upright_rgb(picture)
    return cut_to(upright, painted_size(model, upright.height, upright.width))[None]
