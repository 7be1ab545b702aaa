"""CLIP's vision side in transformers' folder layout, for image adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidFile
from ..safe_files import check_regular_inside, read_text, refuse_pickled
from ..strict_json import parse_json

Colours = tuple[float, float, float]
"""A number for red, green and blue."""
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's own pictures were normalised by."""
MAX_ITEMS = 1000
"""Entries of a ``preprocessor_config.json``, which has about thirty."""


def check_clip_folder(folder: Path) -> None:
    """Refuse what the library would wait for, look for in the network, or run.

    Raises:
        InvalidFile: no folder of a model, or a pipe or a device in it, or weights that are pickled.
    """
    if not os.path.isfile(folder / "config.json"):
        raise InvalidFile(f"{folder} is not a CLIP model: it has no config.json; give its folder.")
    check_regular_inside(folder)
    refuse_pickled(folder)


def _normalisation(folder: Path) -> tuple[Colours, Colours]:
    """Mean and spread that a folder's ``preprocessor_config.json`` says, else CLIP's own.

    Raises:
        InvalidFile: it says no such.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return MEAN, SPREAD
    try:
        config = parse_json(read_text(path), MAX_ITEMS)
        if not isinstance(config, dict):
            raise ValueError("it is no object")
        mean, spread = (_colours(config.get(*told)) for told in (("image_mean", MEAN), ("image_std", SPREAD)))
        if min(spread) <= 0:
            raise ValueError("image_std is not above 0")
    except ValueError as error:
        raise InvalidFile(f"{path} does not say how pictures are normalised ({error}); get a fresh copy.") from error
    return mean, spread


def _colours(told: Any) -> Colours:
    if not (isinstance(told, (list, tuple)) and len(told) == 3 and all(isinstance(one, (int, float)) for one in told)):
        raise ValueError("image_mean and image_std are not three numbers each")
    red, green, blue = map(float, told)
    return red, green, blue


class ClipVision:
    """Embeds pictures.

    Args:
        network: ``CLIPVisionModelWithProjection``.
        mean, spread: of each colour, by which pictures are normalised.
    """

    def __init__(self, network: Any, mean: Colours = MEAN, spread: Colours = SPREAD) -> None:
        self.network, self.mean, self.spread = network, mean, spread

    @classmethod
    def load(cls, folder: Path) -> ClipVision:
        """Load offline, with the normalisation that ``preprocessor_config.json`` says, else CLIP's own.

        Raises:
            InvalidFile: no such folder, not a CLIP vision model, or no numbers to normalise by.
        """
        check_clip_folder(folder)
        try:
            from transformers import CLIPVisionModelWithProjection

            network, report = CLIPVisionModelWithProjection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # the libraries raise dozens of types for a damaged folder
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidFile(f"{folder} is not a CLIP vision model ({first}); get a fresh copy.") from error
        if [key for key in report["missing_keys"] if not key.endswith("position_ids")]:
            raise InvalidFile(f"{folder} is not a whole CLIP vision model: tensors are missing; get a fresh copy.")
        return cls(network.eval(), *_normalisation(folder))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Embeddings [B, E] of pictures, uint8 [B, 3, H, W]."""
        side = self.network.config.image_size
        scaled = F.interpolate(pictures.float() / 255, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, spread = (torch.tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.spread))
        embedded: Tensor = self.network((scaled - mean) / spread).image_embeds
        return embedded
