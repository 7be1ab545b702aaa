"""What all nodes share of the host: folders, types of links, messages and the way errors end a graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..erasure_core.concept import Concept
from ..erasure_core.erasure_file import StoredErasure
from ..erasure_core.errors import Cancelled, InvalidSettings, OutOfMemory
from ..erasure_core.library import Library
from .refusal import FOLDER

CATEGORY = "concept erasure"
ADAPTERS = "ipadapter"
"""The folder below ``models`` that packs for IP-Adapters use."""
PREFIX = "ConceptErasure"
"""Begins every node's id."""

ConceptType = io.Custom("CONCEPT")
ErasureType = io.Custom("ERASURE")
BoundaryType = io.Custom("BOUNDARY")


@dataclass(frozen=True)
class ConceptRequest:
    """What a Concept node hands on.

    Args:
        concept: what to erase, what instead, what to keep.
        pictures: of the concept, float [B, H, W, 3] from 0 to 1, or ``None``.
        explicit: pictures of it are not to be shown.
    """

    concept: Concept
    pictures: torch.Tensor | None = None
    explicit: bool = False


@dataclass(frozen=True)
class Item:
    """One erasure on a link, with the strengths it has there.

    Args:
        stored: its changes and manifest.
        unet: factor on the changes of the diffusion network.
        text: factor on the changes of the text encoders.
        is_file: whether ``stored`` is a file as it lies there, not one converted in memory.
        noise: by layer, the share of a foreign file's change that may be rounding; no rank need be spent on it.

    Raises:
        InvalidSettings: a strength is no number.
    """

    stored: StoredErasure
    unet: float = 1.0
    text: float = 1.0
    is_file: bool = True
    noise: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.unet) and math.isfinite(self.text)):
            raise InvalidSettings(f"The strength of {self.stored.path.name} is no number; write one.")

    def times(self, unet: float, text: float) -> Item:
        return replace(self, unet=self.unet * unet, text=self.text * text)


Stack = tuple[Item, ...]
"""What runs on a link of the type ERASURE."""


def register_folders() -> None:
    """Make ``models/erasures`` known, before folders that ``extra_model_paths.yaml`` may have named, for new files go
    there; and the folder of IP-Adapters, which the host has only with a pack for them."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
    paths, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(suffixes) | {".safetensors"})
    if ADAPTERS not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(ADAPTERS, str(Path(folder_paths.models_dir) / ADAPTERS))


def library() -> Library:
    return Library([Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)])


@contextmanager
def working() -> Iterator[None]:
    """Around all work of a node: normal tensors, and errors as ComfyUI shows them best.

    ComfyUI runs nodes in inference mode, whose tensors no training may touch.
    """
    import comfy.model_management as mm

    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    except Cancelled:
        # The host's own exception ends the queue item as its Interrupt button promises, and clears the request.
        mm.throw_exception_if_processing_interrupted()
        raise mm.InterruptProcessingException from None
    except OutOfMemory as error:
        raise OutOfMemory(
            "The device has too little memory for this, even in the smallest pieces. Free some, choose a lower "
            "resolution or rank or fewer layers; a stopped training goes on when the same graph is queued again."
        ) from error


def say(node_id: str | None, text: str) -> None:
    """Show a line of text on a node."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)


def tell(event: str, data: dict[str, Any]) -> None:
    """Send an event of ours to the browser that queued the running graph."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(f"concept_erasure.{event}", data, server.client_id)


def file_fingerprint(paths: Sequence[Path]) -> str:
    """Changes when a file does: path, size and time of the last change."""
    seen = []
    for path in paths:
        try:
            state = path.stat()
            seen.append(f"{path} {state.st_size} {state.st_mtime_ns}")
        except OSError:
            seen.append(f"{path} missing")
    return "; ".join(seen)


def as_image(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] as ComfyUI's IMAGE, float [B, H, W, 3]."""
    return pictures.movedim(1, -1).float() / 255


def check_pictures(image: torch.Tensor) -> None:
    """Raises InvalidSettings for an IMAGE without pictures, or without three colours."""
    if image.ndim != 4 or image.shape[-1] < 3 or not image.numel():
        raise InvalidSettings(
            f"An IMAGE input holds no pictures of three colours, but values of the shape {list(image.shape)}; connect "
            "RGB pictures."
        )


def fit(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An IMAGE cut to the middle and scaled to a height and width, uint8 [B, 3, height, width]; raises as
    ``check_pictures``."""
    check_pictures(image)
    scale = max(wanted / given for wanted, given in zip(size, image.shape[1:3], strict=True))
    height, width = (max(1, round(wanted / scale)) for wanted in size)
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    middle = image[:, top : top + height, left : left + width, :3].movedim(-1, 1).float()
    scaled = torch.nn.functional.interpolate(middle, size=size, mode="bilinear", antialias=True)
    return (scaled * 255).round().clamp(0, 255).to("cpu", torch.uint8)


def lines(text: str) -> tuple[str, ...]:
    """The lines of a multi-line widget, without empty ones."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())
