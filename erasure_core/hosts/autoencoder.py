"""What every host's autoencoder (VAE) gives: few pictures at a time, and none that are no numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..broken_model import check_model
from ..errors import ModelError
from ..model import LoadedModel

DECODED_AT_ONCE = 64 * 64
"""Latent pixels decoded in one call: one picture of 512 x 512, or many small ones."""


def decoded_at_once(latents: Tensor) -> tuple[Tensor, ...]:
    """Latents [B, C, h, w] a few at a time: decoding needs far more memory than denoising."""
    return torch.split(latents, max(1, DECODED_AT_ONCE // latents[0, 0].numel()))


def checked_pictures(levels: Tensor, model: LoadedModel, cure: str) -> Tensor:
    """Pictures, uint8 on the CPU, of what an autoencoder has decoded.

    Args:
        levels: pictures [B, 3, H, W] from 0 to 255, or a little beyond.
        model: whose autoencoder it is.
        cure: what its host lets the user do about an autoencoder that gives no numbers.

    Raises:
        ModelError: some are not finite; as a picture they would be black.
    """
    _check(levels, model, cure)
    return levels.round().clamp(0, 255).to("cpu", torch.uint8)


def checked_latents(latents: Tensor, model: LoadedModel, cure: str) -> Tensor:
    """Latents [B, C, h, w] that an autoencoder has encoded, as they are; arguments and errors as of
    ``checked_pictures``. Later they would be taken for a fault of what is painted from them."""
    _check(latents, model, cure)
    return latents


def _check(given: Tensor, model: LoadedModel, cure: str) -> None:
    if not torch.isfinite(given).all():
        check_model(model)
        raise ModelError(f"The model's autoencoder (VAE) gives no finite numbers; {cure}.")
