"""Pictures of a concept for methods that read them: a user's own, or made by the model itself."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .concept import worded
from .errors import InvalidFile
from .image_prompt import ImageAdapter
from .model import LoadedModel
from .progress import Progress
from .safe_files import check_regular
from .sampling import sample

if TYPE_CHECKING:
    from .methods import Method

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""No others, whatever a file is called: some start other programs (EPS)."""
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


def reads_pictures(method: Method) -> bool:
    """Whether a method learns from pictures: it has settings for the tokens that stand for them."""
    return "picture_tokens" in method.settings.__dataclass_fields__


def read_pictures(folder: Path, size: tuple[int, int]) -> Tensor:
    """All pictures of a folder, cut to the middle and scaled, uint8 [N, 3, height, width].

    Args:
        folder: of PNG, JPEG, WebP or BMP files.
        size: height and width.

    Raises:
        InvalidFile: the folder has no pictures, or one cannot be read.
    """
    return torch.stack([read_picture(path, size) for path in picture_paths(folder)])


def picture_paths(folder: Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        InvalidFile: there is no such folder, or it cannot be read or has none.
    """
    if not os.path.exists(folder):  # os.path, for pathlib raises an error for a name that is too long
        raise InvalidFile(f"{folder} does not exist, so it holds no pictures; check the path.")
    if not os.path.isdir(folder):
        raise InvalidFile(f"{folder} is no folder; give the folder that the pictures are in.")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise InvalidFile(f"{folder} cannot be read ({error.strerror}); check its rights.") from error
    if not paths:
        raise InvalidFile(f"{folder} holds no pictures ({', '.join(SUFFIXES)}); choose a folder with some.")
    return paths


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """One picture, cut to the middle and scaled, uint8 [3, height, width]; raises as ``whole_picture``."""
    return cut_to(whole_picture(path), size)


def whole_picture(path: Path) -> Image.Image:
    """The picture in a file, as ``upright_rgb`` has it; of a moving one the first.

    Raises:
        InvalidFile: it is no file, too large, damaged, or of another format.
    """
    check_regular(path)
    return opened_picture(path, str(path))


def opened_picture(source: Path | BinaryIO, called: str) -> Image.Image:
    """A picture that may come from a stranger, as ``upright_rgb`` has it.

    Args:
        source: the file, or its content.
        called: what a sentence calls it.

    Raises:
        InvalidFile: it is too large, damaged, or of another format.
    """
    try:
        with Image.open(source, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:  # known from the header, before anything is decoded
                raise InvalidFile(f"{called} has more than {MAX_PIXELS // 2**20} megapixels; make it smaller.")
            return upright_rgb(opened)
    except InvalidFile:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidFile(f"{called} has more than {MAX_PIXELS // 2**20} megapixels; make it smaller.") from error
    except Exception as error:  # the decoders raise many types for damaged files
        reason = "it is no PNG, JPEG, WebP or BMP" if isinstance(error, UnidentifiedImageError) else f"damaged: {error}"
        raise InvalidFile(
            f"{called} cannot be read as a picture ({reason}); save it anew as PNG or JPEG, or take it out."
        ) from error


def cut_to(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture cut to the middle and scaled to a height and width, uint8 [3, height, width]."""
    height, width = size
    cut = np.asarray(ImageOps.fit(picture, (width, height)))  # scales the middle only: a long strip would grow huge
    return torch.from_numpy(cut.copy()).permute(2, 0, 1)


def upright_rgb(opened: Image.Image) -> Image.Image:
    """A picture as people see it: turned as its camera noted, on white where it is transparent, and with 16 bits of
    grey in the range of 8."""
    upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):
        deep = np.asarray(upright, dtype=np.int64)
        upright = Image.fromarray((deep.clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        shown = upright.convert("RGBA")  # knows all kinds: a channel, entries of the palette, one colour
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return upright.convert("RGB")


def own_latents(
    model: LoadedModel,
    phrase: str,
    count: int,
    seed: int,
    steps: int,
    guidance: float,
    progress: Progress,
    max_batch: int = 16,
) -> Tensor:
    """Latents of pictures of the concept that the model itself makes, [count, C, h, w].

    Args:
        model, steps, guidance, progress: as of ``sample``.
        phrase: says the concept.
        count: how many pictures.
        seed: of the first one.
        max_batch: most latents in one network call; guidance takes two for each picture.
    """
    each = max(1, max_batch // 2)
    groups = [range(seed + start, seed + min(start + each, count)) for start in range(0, count, each)]
    prompt = worded("a photo of a {}", phrase)
    return torch.cat([sample(model, [prompt] * len(s), s, steps, guidance, progress=progress) for s in groups])
