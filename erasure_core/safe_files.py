"""Reading and writing safetensors as if every file came from a stranger and every disk were full."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from .errors import InvalidFile, OutputError

MAX_HEADER = 16 * 2**20
"""Bytes. A full dense SDXL erasure needs less than 1 MiB."""
MAX_TENSORS = 20_000
MAX_SIZE = 32 * 2**30
DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"}


def read_header(path: Path) -> dict[str, dict[str, object]]:
    """The header of a safetensors file: tensor name to dtype, shape and offsets, and ``__metadata__``.

    Raises:
        InvalidFile: missing, not safetensors, or larger than any erasure can be.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise InvalidFile(f"{path} is not a safetensors file, or it is cut short; get a fresh copy.")
            if length > MAX_HEADER or size > MAX_SIZE:
                raise InvalidFile(f"{path} has a header of {length} bytes or is {size} bytes long: too large to trust.")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} is not a safetensors file, or it is damaged; get a fresh copy.") from error
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise InvalidFile(f"{path} has a header of the wrong form; it is not a safetensors file.")
    if len(header) > MAX_TENSORS:
        raise InvalidFile(f"{path} lists {len(header)} tensors; more than {MAX_TENSORS} are not accepted.")
    return header


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, on the CPU, and the metadata.

    Raises:
        InvalidFile: missing, damaged, hostile, or holding values that are not finite.
    """
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    strange = [str(entry.get("dtype")) for entry in header.values() if entry.get("dtype") not in DTYPES]
    if strange:
        raise InvalidFile(f"{path} holds tensors of type {strange[0]!r}, which no erasure uses.")
    try:
        tensors = load(path.read_bytes())
    except Exception as error:  # the parser raises its own type for every kind of damage
        raise InvalidFile(f"{path} is damaged ({error}); get a fresh copy.") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InvalidFile(f"{path} holds values that are not finite (in {name!r}); it cannot be used.")
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write under a temporary name, flush to disk, then rename: a reader sees the old file or the whole new one.

    Raises:
        OutputError: the folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    write_bytes(path, _with_metadata(save(stored), metadata))


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Put metadata into a safetensors file in sorted order; the library's own order changes from call to call, and
    equal erasures must be equal files."""
    length = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; raises as ``write_tensors``."""
    part: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if part is not None and os.path.exists(part):
            os.unlink(part)
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); choose another folder or free some space."
        ) from error
