"""Pictures of a concept for methods that read them: a user's own, or made by the model itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import InvalidFile
from .image_prompt import ImageAdapter
from .model import LoadedModel
from .progress import Progress
from .sampling import sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 64 * 2**20


@dataclass(frozen=True)
class ConceptPictures:
    """What shows the concept. Either tokens with the adapter that reads them, or latents to learn tokens from.

    Args:
        latents: clean latents [N, C, h, w].
        tokens: picture tokens [N, T, D].
        adapter: reads the tokens.
    """

    latents: Tensor | None = None
    tokens: Tensor | None = None
    adapter: ImageAdapter | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.latents is None) or (self.tokens is None) != (self.adapter is None):
            raise ValueError("exactly one of latents and tokens with their adapter must be given")

    def fingerprint(self) -> str:
        """What tells these pictures from others, for a checkpoint."""
        shown = self.latents if self.latents is not None else self.tokens
        assert shown is not None
        return hashlib.sha256(shown.detach().float().cpu().numpy().tobytes()).hexdigest()


def read_pictures(folder: Path, size: tuple[int, int]) -> Tensor:
    """All pictures of a folder, cut to the middle and scaled, uint8 [N, 3, height, width].

    Args:
        folder: of PNG, JPEG, WebP or BMP files.
        size: height and width.

    Raises:
        InvalidFile: the folder has no pictures, or one cannot be read.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise InvalidFile(f"{folder} holds no pictures ({', '.join(SUFFIXES)}); choose a folder with some.")
    return torch.stack([read_picture(path, size) for path in paths])


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """One picture, cut to the middle and scaled, uint8 [3, height, width]; raises as ``read_pictures``."""
    height, width = size
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InvalidFile(f"{path} has more than {MAX_PIXELS // 2**20} megapixels; make it smaller.")
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidFile(f"{path} cannot be read as a picture ({error}).") from error
    scale = max(width / picture.width, height / picture.height)
    picture = picture.resize((max(width, round(picture.width * scale)), max(height, round(picture.height * scale))))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    cut = np.asarray(picture.crop((left, top, left + width, top + height)))
    return torch.from_numpy(cut.copy()).permute(2, 0, 1)


def own_latents(model: LoadedModel, phrase: str, count: int, seed: int, steps: int, progress: Progress) -> Tensor:
    """Latents of pictures of the concept that the model itself makes, [count, C, h, w]."""
    return sample(model, [f"a photo of a {phrase}"] * count, range(seed, seed + count), steps, progress=progress)
