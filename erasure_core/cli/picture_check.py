"""``--clip`` of explore and report: a CLIP model of the user's own looks at pictures in the loaded model's place."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..boundary.wording import unrelated_words
from ..concept import Concept, worded
from ..errors import InvalidFile
from ..hosts.clip_vision import ClipVision, check_clip_folder
from ..hosts.ldm_checkpoint import TOKENIZER

SHARPNESS = 100.0
"""What similarities are multiplied by before they are compared; CLIP's training ends at this value."""


def add_clip_argument(parser: argparse.ArgumentParser) -> None:
    """Read by ``chosen_check``."""
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="a whole CLIP model, text and vision, in transformers' layout: it looks at the pictures of the worst "
        "prompts in the loaded model's place",
    )


def chosen_check(options: argparse.Namespace, concept: Concept) -> PictureCheck | None:
    """What looks at pictures, if a CLIP model was given.

    Raises:
        InvalidFile: the folder is no whole CLIP model.
    """
    return None if options.clip is None else PictureCheck.load(options.clip, concept)


class PictureCheck:
    """Tells of pictures how probably each shows the concept rather than anything else: a ``Detector``.

    Args:
        vision: CLIP's vision side.
        inside: text embeddings that say the concept, [N, E].
        outside: of everything else it is compared with, [M, E].
    """

    def __init__(self, vision: ClipVision, inside: Tensor, outside: Tensor) -> None:
        self.vision, self.inside, self.outside = vision, F.normalize(inside, dim=1), F.normalize(outside, dim=1)

    @classmethod
    def load(cls, folder: Path, concept: Concept) -> PictureCheck:
        """Load offline; the concept's words are compared with kept prompts and with everyday words.

        Raises:
            InvalidFile: no whole CLIP model.
        """
        model = _whole_model(folder)
        others = [f"a photo of a {word}" for word in unrelated_words(concept)]
        inside = _embedded(model, [worded("a photo of a {}", word) for word in concept.words])
        return cls(ClipVision(_VisionSide(model)), inside, _embedded(model, [*concept.keep, *others]))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> list[float]:
        """Probabilities for pictures, uint8 [B, 3, H, W]. Of several words for the concept the best one counts: more
        words must not make it more probable."""
        seen = F.normalize(self.vision(pictures.cpu()), dim=1)
        concept = (seen @ self.inside.T).amax(1, keepdim=True)
        similar = torch.cat([concept, seen @ self.outside.T], dim=1)
        found: list[float] = (SHARPNESS * similar).softmax(1)[:, 0].tolist()
        return found


class _VisionSide:
    """A whole CLIP model as ``ClipVision`` wants it."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config.vision_config

    def __call__(self, pixels: Tensor) -> Any:
        seen = self.model.vision_model(pixels).pooler_output
        return SimpleNamespace(image_embeds=self.model.visual_projection(seen))


def _whole_model(folder: Path) -> Any:
    check_clip_folder(folder)
    try:
        from transformers import CLIPModel

        model, report = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the libraries raise dozens of types for a damaged folder
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidFile(f"{folder} is not a CLIP model ({first}); get a fresh copy.") from error
    if [key for key in report["missing_keys"] if not key.endswith("position_ids")]:
        raise InvalidFile(f"{folder} is half a CLIP model; --clip takes a whole one, text and vision.")
    return model.eval()


@torch.no_grad()
def _embedded(model: Any, prompts: list[str]) -> Tensor:
    """Prompts as CLIP's text side embeds them."""
    from transformers import CLIPTokenizer

    rows = CLIPTokenizer.from_pretrained(TOKENIZER)(prompts, padding="max_length", truncation=True, return_tensors="pt")
    read = model.text_model(rows.input_ids, attention_mask=rows.attention_mask).pooler_output
    embedded: Tensor = model.text_projection(read)
    return embedded
