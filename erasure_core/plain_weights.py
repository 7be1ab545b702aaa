"""Reads weights that strangers have saved, pickles among them, without running code and in bounded memory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import InvalidFile
from .finite import all_finite
from .safe_files import MAX_SIZE, check_regular, is_unicode, read_tensors

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of files of weights that are no safetensors."""
ARCHIVE = b"PK\x03\x04"
"""By these first bytes torch knows an archive; whatever begins otherwise it reads in its old form."""
MAX_FOLDERS = 1000
"""Dictionaries that are looked into."""


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file, or of a pickle (.pt, .pth, .bin, .ckpt) that holds nothing else.

    Raises:
        InvalidFile: unreadable, unsafe, or with values that are not finite.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    _check_pickle(path)
    try:
        if _is_program(path):
            raise InvalidFile(f"{path} is a program (TorchScript); get the same weights as .safetensors.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InvalidFile:
        raise
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except Exception as error:  # the unpickler raises its own types, among them for code it refuses to run
        raise InvalidFile(f"{path} is damaged, or holds more than weights; only plain weights are read.") from error
    flat = _flat(content)
    if not flat:
        raise InvalidFile(f"{path} holds no weights.")
    for name, tensor in flat.items():
        _check_plain(path, name, tensor)
    return flat, {}


def _check_pickle(path: Path) -> None:
    """Refuse what would take more memory than its size on disk says: torch never compresses. In its form of before
    2020, which is no archive, storages may claim any size.

    Raises:
        InvalidFile: too large, compressed, or of that form.
    """
    size = check_regular(path)
    if not is_unicode(path):
        raise InvalidFile(f"{path} has a name that is no UTF-8; rename it.")
    if size > MAX_SIZE:
        raise InvalidFile(f"{path} is {size} bytes long: too large to trust.")
    try:
        with path.open("rb") as file:
            begins = file.read(len(ARCHIVE))
        if begins != ARCHIVE or not zipfile.is_zipfile(path):  # Python's archives may begin anywhere in a file
            raise InvalidFile(
                f"{path} is no file of weights, or damaged, or older than torch 1.6; only plain weights are read, in "
                "the form torch has now."
            )
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise InvalidFile(f"{path} unpacks from {size} to {unpacked} bytes: too large to trust.")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidFile(f"{path} is damaged ({error}); get a fresh copy.") from error


def _is_program(path: Path) -> bool:
    """Whether it is TorchScript, whose code torch runs before 2.6 even where it is asked for weights only
    (CVE-2025-32434). Torch's own reader is asked: of a forged archive Python's may list other entries."""
    with path.open("rb") as file:
        return "constants.pkl" in torch._C.PyTorchFileReader(file).get_all_records()


def _check_plain(path: Path, name: str, tensor: Tensor) -> None:
    """Pickles can hold tensors that claim terabytes (strides of 0) or are not made of plain numbers.

    Raises:
        InvalidFile: it is such a tensor, or holds values that are not finite.
    """
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.is_complex() or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidFile(f"{path} holds {name[:80]!r} in a form that weights do not have; it cannot be converted.")
    if not all_finite(tensor.float()):
        raise InvalidFile(f"{path} holds values that are not finite (in {name[:80]!r}); it cannot be converted.")


def _flat(content: object) -> dict[str, Tensor]:
    """Tensors of nested dictionaries, such as {"unet": {...}} or {"state_dict": {...}}."""
    found: dict[str, Tensor] = {}
    waiting: list[tuple[object, str, int]] = [(content, "", 0)]
    for _ in range(MAX_FOLDERS):  # one dictionary may be in itself, or in a thousand others
        if not waiting:
            break
        folder, prefix, depth = waiting.pop(0)
        for key, value in folder.items() if isinstance(folder, Mapping) else ():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, Mapping) and depth < 3:
                waiting.append((value, "" if key == "state_dict" else f"{prefix}{key}.", depth + 1))
    return found
