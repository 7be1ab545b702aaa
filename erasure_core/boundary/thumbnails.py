"""Small pictures for the map, as data URIs. A picture that must be blurred is stored blurred, not only shown so."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

from PIL import Image, ImageFilter
from torch import Tensor

from ..model import LoadedModel

SIDE = 96
BLUR = 0.12
"""Radius of the blur as a share of the side: no shape is left."""


def thumbnail(model: LoadedModel, latent: Tensor, blurred: bool) -> str:
    """A PNG of a clean latent [C, H, W], or nothing where the model cannot show pictures."""
    decode = decoder(model)
    return "" if decode is None else picture_uri(decode(latent[None])[0], blurred)


def decoder(model: LoadedModel) -> Callable[[Tensor], Tensor] | None:
    """What makes pictures of a model's latents; ``None`` where it was loaded without."""
    return None if getattr(model, "vae", True) is None else getattr(model, "decode", None)


def picture_uri(picture: Tensor, blurred: bool = False, side: int = SIDE) -> str:
    """A data URI of a picture, uint8 [3, H, W], at most ``side`` wide and high."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
