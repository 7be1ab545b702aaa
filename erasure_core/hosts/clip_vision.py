"""CLIP's vision side in transformers' folder layout, for image adapters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidFile
from ..safe_files import check_regular_inside, refuse_pickled

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's own pictures were normalised by."""


def check_clip_folder(folder: Path) -> None:
    """Refuse what the library would wait for, look for in the network, or run.

    Raises:
        InvalidFile: no folder of a model, or a pipe or a device in it, or weights that are pickled.
    """
    if not os.path.isfile(folder / "config.json"):
        raise InvalidFile(f"{folder} is not a CLIP model: it has no config.json; give its folder.")
    check_regular_inside(folder)
    refuse_pickled(folder)


class ClipVision:
    """Embeds pictures.

    Args:
        network: ``CLIPVisionModelWithProjection``.
        mean, spread: of each colour, by which pictures are normalised.
    """

    def __init__(self, network: Any, mean: tuple[float, ...] = MEAN, spread: tuple[float, ...] = SPREAD) -> None:
        self.network, self.mean, self.spread = network, mean, spread

    @classmethod
    def load(cls, folder: Path) -> ClipVision:
        """Load offline, with the normalisation that ``preprocessor_config.json`` says, else CLIP's own.

        Raises:
            InvalidFile: no such folder, or not a CLIP vision model.
        """
        check_clip_folder(folder)
        try:
            from transformers import CLIPVisionModelWithProjection

            network, report = CLIPVisionModelWithProjection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            told = folder / "preprocessor_config.json"
            config = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
        except Exception as error:  # the libraries raise dozens of types for a damaged folder
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidFile(f"{folder} is not a CLIP vision model ({first}); get a fresh copy.") from error
        if [key for key in report["missing_keys"] if not key.endswith("position_ids")]:
            raise InvalidFile(f"{folder} is not a whole CLIP vision model: tensors are missing; get a fresh copy.")
        mean, spread = config.get("image_mean", MEAN), config.get("image_std", SPREAD)
        return cls(network.eval(), tuple(mean), tuple(spread))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Embeddings [B, E] of pictures, uint8 [B, 3, H, W]."""
        side = self.network.config.image_size
        scaled = F.interpolate(pictures.float() / 255, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, spread = (torch.tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.spread))
        embedded: Tensor = self.network((scaled - mean) / spread).image_embeds
        return embedded
