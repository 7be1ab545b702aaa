"""Pictures of a concept in a graph: latents to learn tokens from, or tokens that an IP-Adapter makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..erasure_core.concept_pictures import ConceptPictures
from ..erasure_core.errors import InvalidFile, InvalidSettings
from ..erasure_core.hosts.comfyui import ComfyModel, as_the_host
from ..erasure_core.image_prompt import ImageAdapter
from .host import ADAPTERS, ConceptRequest, as_image, fit
from .widgets import NONE

SUFFIX = ".safetensors"


def adapter_widget() -> Any:
    return io.Combo.Input(
        "ip_adapter",
        options=[NONE, *adapters()],
        default=NONE,
        tooltip=f"Reads the concept's pictures: a basic IP-Adapter of the base model, from models/{ADAPTERS}, together "
        "with clip_vision. none: tokens are learned from the pictures, which takes some time and needs a VAE.",
    )


def vision_link() -> Any:
    return io.ClipVision.Input(
        "clip_vision", optional=True, tooltip="Only with ip_adapter: the CLIP vision model that it was made for."
    )


def adapters() -> list[str]:
    """The files that may be IP-Adapters. Other formats can hold programs, so they are not listed."""
    return [name for name in folder_paths.get_filename_list(ADAPTERS) if name.endswith(SUFFIX)]


def concept_pictures(
    model: ComfyModel, request: ConceptRequest, ip_adapter: str = NONE, clip_vision: Any = None
) -> ConceptPictures | None:
    """The connected pictures as the erasure reads them; ``None`` without any.

    Args:
        model: what is erased from; it has a VAE where no adapter reads the pictures.
        request: with the pictures.
        ip_adapter: a name of ``adapters``, or ``NONE``.
        clip_vision: the host's CLIP_VISION, for the adapter.

    Raises:
        InvalidSettings: an adapter without vision model or pictures, or a vision model without adapter.
        InvalidFile: the adapter cannot be read, or fits neither the model nor the vision model.
        ModelError: a VAE is needed.
    """
    adapted = ip_adapter != NONE
    if adapted != (clip_vision is not None):
        raise InvalidSettings(
            "ip_adapter and clip_vision belong together: choose an adapter and connect the CLIP_VISION that it was "
            "made for, or do neither."
        )
    if request.pictures is None:
        if adapted:
            raise InvalidSettings("ip_adapter reads pictures of the concept: connect some to the Concept node.")
        return None
    side = 8 * model.latent_shape[-1]
    pictures = fit(request.pictures, (side, side))
    if not adapted:
        return ConceptPictures(latents=model.latents_of(pictures))
    adapter = ImageAdapter.read(_located(ip_adapter), model)
    assert adapter.projector is not None
    with as_the_host():
        embedded = clip_vision.encode_image(as_image(pictures)).image_embeds
    return ConceptPictures(tokens=adapter.projector(embedded.clone().float().to(model.device)), adapter=adapter)


def _located(name: str) -> Path:
    if name not in adapters():
        raise InvalidFile(f"There is no IP-Adapter {name!r} in models/{ADAPTERS}; refresh the list and choose again.")
    return Path(folder_paths.get_full_path_or_raise(ADAPTERS, name))
