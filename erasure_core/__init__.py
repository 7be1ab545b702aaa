"""Concept erasure for loaded diffusion models: an erasure is a delta over frozen weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .concept import Concept
    from .delta import DeltaSet, DenseDelta, LowRankDelta
    from .erasing import applied, erase
    from .erasure_file import Erasure, StoredErasure, read_erasure, write_erasure
    from .errors import ErasureError
    from .methods import METHODS
    from .model import Conditioning, LoadedModel, PictureModel, PromptModel
    from .progress import Progress, Report, Silent
    from .sampling import sample
    from .schedule import NoiseSchedule

# Loaded on first use: a host that only starts up should not wait for us, and the command line must be able to say that
# torch is missing.
_HOMES = {
    "concept": ("Concept",),
    "delta": ("DeltaSet", "DenseDelta", "LowRankDelta"),
    "erasing": ("applied", "erase"),
    "erasure_file": ("Erasure", "StoredErasure", "read_erasure", "write_erasure"),
    "errors": ("ErasureError",),
    "methods": ("METHODS",),
    "model": ("Conditioning", "LoadedModel", "PictureModel", "PromptModel"),
    "progress": ("Progress", "Report", "Silent"),
    "sampling": ("sample",),
    "schedule": ("NoiseSchedule",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "Concept",
    "Conditioning",
    "DeltaSet",
    "DenseDelta",
    "Erasure",
    "ErasureError",
    "LoadedModel",
    "LowRankDelta",
    "NoiseSchedule",
    "PictureModel",
    "Progress",
    "PromptModel",
    "Report",
    "Silent",
    "StoredErasure",
    "__version__",
    "applied",
    "erase",
    "read_erasure",
    "sample",
    "write_erasure",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
