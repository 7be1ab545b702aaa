"""Concept erasure for loaded diffusion models: an erasure is a delta over frozen weights."""

from .concept import Concept
from .delta import DeltaSet, DenseDelta, LowRankDelta
from .erase import applied, erase
from .erasure_file import Erasure, StoredErasure, read_erasure, write_erasure
from .errors import ErasureError
from .methods import METHODS
from .model import Conditioning, LoadedModel, PictureModel
from .progress import Progress, Report, Silent
from .sampling import sample
from .schedule import NoiseSchedule
from .version import __version__

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
