"""What a family of models is like, whichever host has loaded one."""

from __future__ import annotations

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""Canonical names of a model's text encoders, in the order in which their outputs are joined."""


def latent_side(family: str, prediction: str) -> int:
    """Side, in latent pixels, of the pictures that a family was made for. SD2's models that predict v were made for 768
    pixels, those that predict noise (2.0-base, 2.1-base) for 512, as Stability's model cards say."""
    if family == "sdxl":
        return 128
    return 96 if (family, prediction) == ("sd2", "v_prediction") else 64
