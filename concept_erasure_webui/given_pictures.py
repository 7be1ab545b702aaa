"""Pictures of a concept that a user gave: uploaded in the tab, or sent to a route as base64. A path is never read.

They come from strangers: few formats, and caps on number, bytes and pixels before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from erasure_core.concept_pictures import ConceptPictures, opened_picture
from erasure_core.errors import InvalidFile, InvalidSettings
from erasure_core.hosts.webui import WebuiModel
from erasure_core.model import PATCH
from erasure_core.safe_files import check_regular

from .working import as_pixels

MOST_PICTURES = 64
MOST_BYTES = 16 * 2**20
"""Of one picture's file."""
MOST_SIDE = 1024
"""Pixels that are kept of a picture's side; no family paints larger ones by itself."""


def from_uploads(files: Any) -> tuple[Image.Image, ...]:
    """What the browser has sent: gradio 3 gives objects with a name, gradio 4 paths, and nothing for no files.

    Raises:
        InvalidSettings: too many.
        InvalidFile: one is too large or cannot be read.
    """
    listed = list(files) if isinstance(files, (list, tuple)) else [files] if files else []
    _check_number(len(listed))
    return tuple(_opened(_content(file, number), number) for number, file in enumerate(listed, 1))


def from_base64(texts: Sequence[str]) -> tuple[Image.Image, ...]:
    """Pictures in a JSON body, with or without ``data:image/png;base64,`` before them.

    Raises:
        InvalidSettings: too many, or a text is not base64.
        InvalidFile: one is too large or cannot be read.
    """
    _check_number(len(texts))
    return tuple(_opened(_decoded(text, number), number) for number, text in enumerate(texts, 1))


def concept_pictures(model: WebuiModel, pictures: Sequence[Image.Image]) -> ConceptPictures | None:
    """Latents of pictures, cut to the middle and scaled to what the model is trained at; nothing for no pictures."""
    if not pictures:
        return None
    _, height, width = model.latent_shape
    fitting = (ImageOps.fit(picture, (PATCH * width, PATCH * height)) for picture in pictures)
    devices = [model.device] if model.device.type == "cuda" else []
    # The Forge family draws latents by chance; the same pictures must go on with the same training.
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        # One at a time: many pictures as floating-point numbers would not fit beside the model.
        latents = [model.latents_of(as_pixels(picture)[None]) for picture in fitting]
    return ConceptPictures(latents=torch.cat(latents))


def _check_number(number: int) -> None:
    if number > MOST_PICTURES:
        raise InvalidSettings(f"{number} pictures were given; give at most {MOST_PICTURES}.")


def _content(file: Any, number: int) -> bytes:
    path = Path(getattr(file, "name", file))
    try:
        _check_bytes(check_regular(path), number)
        return path.read_bytes()
    except OSError as error:
        raise InvalidFile(f"Picture {number} cannot be read ({error.strerror}); send it again.") from error


def _decoded(text: str, number: int) -> bytes:
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    _check_bytes(len(encoded) * 3 // 4, number)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidSettings(f"Picture {number} is not base64; send the content of a picture file.") from error


def _check_bytes(size: int, number: int) -> None:
    if size > MOST_BYTES:
        raise InvalidFile(f"Picture {number} has more than {MOST_BYTES // 2**20} MiB; make it smaller.")


def _opened(content: bytes, number: int) -> Image.Image:
    picture = opened_picture(io.BytesIO(content), f"Picture {number}")
    side = min(MOST_SIDE, *picture.size)
    return ImageOps.fit(picture, (side, side))
