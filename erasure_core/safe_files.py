"""Reading and writing safetensors as if every file came from a stranger and every disk were full."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import InUse, InvalidFile, OutputError
from .finite import all_finite
from .safe_header import Header, parse_header

MAX_HEADER = 16 * 2**20
"""Bytes. A full dense SDXL erasure needs less than 1 MiB."""
MAX_SIZE = 16 * 2**30
"""Bytes. A dense SDXL erasure in float32 has 10 GiB."""
MAX_TEXT = 16 * 2**20
"""Bytes of a file of prompts."""
LONGEST_NAME = 230
"""Bytes of a new file's name. File systems allow 255, and states, locks and unfinished files have longer names."""
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
# torch has these from 2.3 on; A1111 brings 2.1.
NAMES |= {getattr(torch, f"uint{bits}"): f"U{bits}" for bits in (16, 32, 64) if hasattr(torch, f"uint{bits}")}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
READABLE = FLOATS | {"I64", "I32", "U8", "BOOL"}
"""Types of tensors in erasures and training states."""


def is_unicode(path: Path) -> bool:
    """Whether a name is UTF-8, the only one that the safetensors library opens."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_regular(path: Path) -> int:
    """The size of a file in bytes, if it is one: a pipe or a device may never end.

    Raises:
        InvalidFile: missing, or not a regular file.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name holds a zero byte"
        raise InvalidFile(f"{path} cannot be read ({reason}); check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidFile(f"{path} cannot be read: it is a folder, a pipe or a device; give a file.")
    return status.st_size


def check_regular_inside(folder: Path) -> None:
    """Refuse a folder that a library is to read by itself, if it would wait for ever for something in it.

    Raises:
        InvalidFile: something in it is a pipe, a socket or a device, or the folder cannot be read.
    """
    try:
        for path in sorted(folder.iterdir()):
            if path.exists() and not path.is_dir():  # what a broken link stands for is missing, and told as that
                check_regular(path)
    except OSError as error:
        raise InvalidFile(f"{folder} cannot be read ({error.strerror}); check the path.") from error


def refuse_pickled(folder: Path) -> None:
    """Refuse a folder of a network whose weights a library could only read by running what a stranger wrote.

    Raises:
        InvalidFile: there is no .safetensors in it, but a .bin.
    """
    if not any(folder.glob("*.safetensors")) and (pickled := sorted(folder.glob("*.bin"))):
        raise InvalidFile(
            f"{pickled[0]} is a pickle, which can run any code when it is read; get the same weights as .safetensors."
        )


def read_text(path: Path) -> str:
    """A text file in UTF-8, without the byte order mark that Windows' editors put first. A pipe may be read once.

    Raises:
        InvalidFile: it cannot be read, is no UTF-8, or has more than ``MAX_TEXT`` bytes.
    """
    try:
        with path.open("rb") as file:  # a pipe is welcome, an endless one not
            content = file.read(MAX_TEXT + 1)
        if len(content) > MAX_TEXT:
            raise InvalidFile(f"{path} has more than {MAX_TEXT // 2**20} MiB; give a shorter text file.")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidFile(f"{path} cannot be read ({reason}); give a text file in UTF-8.") from error


def read_header(path: Path, max_size: int = MAX_SIZE) -> Header:
    """The header of a safetensors file: tensor name to dtype, shape and offsets, and ``__metadata__``.

    Raises:
        InvalidFile: missing, not safetensors, or larger than any erasure can be.
    """
    size = check_regular(path)
    if not is_unicode(path):
        raise InvalidFile(f"{path} has a name that is no UTF-8; rename it.")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise InvalidFile(f"{path} is not a safetensors file, or it is cut short; get a fresh copy.")
            if length > MAX_HEADER or size > max_size:
                raise InvalidFile(f"{path} has a header of {length} bytes or is {size} bytes long: too large to trust.")
            return parse_header(file.read(length), size - 8 - length)
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        reason = "its header is no JSON" if isinstance(error, (JSONDecodeError, UnicodeDecodeError)) else str(error)
        raise InvalidFile(
            f"{path} is not a safetensors file, or it is damaged ({reason}); get a fresh copy."
        ) from error


def read_tensors(path: Path, max_size: int = MAX_SIZE) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, on the CPU, and the metadata. Except on Windows they are mapped from the file, not copied: there,
    nobody could replace or remove it as long as one of them is held.

    Raises:
        InvalidFile: missing, damaged, hostile, or holding values that are not finite.
    """
    header = read_header(path, max_size)
    metadata: dict[str, str] = header.pop("__metadata__", {})
    strange = [entry["dtype"] for entry in header.values() if entry["dtype"] not in READABLE]
    if strange:
        raise InvalidFile(f"{path} holds tensors of type {strange[0]!r}, which no erasure uses.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in header}
            if sys.platform == "win32":
                tensors = {name: mapped.clone() for name, mapped in tensors.items()}
    except Exception as error:  # the parser raises its own type for every kind of damage
        raise InvalidFile(f"{path} is damaged ({error}); get a fresh copy.") from error
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise InvalidFile(f"{path} holds values that are not finite (in {name!r}); it cannot be used.")
    return tensors, metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, tensor by tensor: no second copy of them is made in memory.

    Names and metadata are sorted, so that equal content makes equal files (the library's own order of metadata changes
    from call to call).

    Raises:
        OutputError: the folder is missing or read-only, or the disk is full; nothing is left behind. Or a tensor is of
            a type that such files are not written with.
    """
    strange = [tensor.dtype for tensor in tensors.values() if tensor.dtype not in NAMES]
    if strange:
        raise OutputError(f"{path} cannot be written: one of its tensors is of type {strange[0]}.")
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    names, offset = sorted(tensors), 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = (tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data for name in names)
    write_chunks(path, (len(text).to_bytes(8, "little"), text), content)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; raises as ``write_chunks``."""
    write_chunks(path, (content,))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content; raises as ``write_chunks``, and InvalidFile if the source cannot be read."""
    check_regular(source)
    write_chunks(target, _content(source))


def _content(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                yield chunk
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read ({error.strerror}); check the path.") from error


def write_chunks(path: Path, *parts: Iterable[bytes | memoryview]) -> None:
    """Write under a temporary name, flush to disk, then rename: a reader sees the old file or the whole new one. Of a
    symbolic link its target is replaced.

    Raises:
        OutputError: the folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    with _unfinished(path, parts) as (part, target):
        os.replace(part, target)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together, by their names: all are whole under temporary names before the first one is
    renamed.

    Raises:
        OutputError: as ``write_chunks``, and none of them is there. Only where one cannot be renamed, such as onto a
            file that another program holds on Windows, may those before it be there already, each of them whole.
    """
    with ExitStack() as stack:
        written = [stack.enter_context(_unfinished(folder / name, [[content]])) for name, content in files.items()]
        for part, target in written:
            os.replace(part, target)


@contextmanager
def _unfinished(path: Path, parts: Iterable[Iterable[bytes | memoryview]]) -> Iterator[tuple[Path, Path]]:
    """Inside, the content is on the disk under a temporary name: that name, and the one it is to get."""
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(path))
        if os.path.lexists(target) and not os.path.isfile(target):  # a link to /dev/null must not replace that
            raise OutputError(f"{path} cannot be written: it is a folder, a pipe or a device; choose another name.")
        # Not tempfile: its files are private to the user, and a web UI may run as somebody else.
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        with part.open("xb") as file:
            for chunks in parts:
                for chunk in chunks:
                    file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield part, target
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); choose another folder or free some space."
        ) from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """While inside, no other process that asks the same may work on ``path``. A killed process frees it.

    Raises:
        InUse: another process works on it.
        OutputError: the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    file = _locked(path, lock)
    try:
        for stale in path.parent.glob(f".{glob.escape(path.name)}*.part"):
            with contextlib.suppress(OSError):  # what cannot be removed is in nobody's way
                stale.unlink(missing_ok=True)  # of a process that was killed while it wrote
        yield
    finally:
        _release(file, lock)


def _release(file: IO[str], lock: Path) -> None:
    """Free a lock and remove its file, which is in nobody's way where it stays.

    POSIX removes files that are open: done before the lock is free, nobody else's can be hit. Windows removes none that
    anybody has open: neither our own before it is closed, nor that of who took the lock then.
    """
    if sys.platform == "win32":
        file.close()
    with contextlib.suppress(OSError):
        lock.unlink()
    file.close()


def _locked(path: Path, lock: Path) -> IO[str]:
    """The lock file, open and locked; closing it frees the lock."""
    while True:
        if os.path.exists(lock) and not os.path.isfile(lock):  # a pipe would be waited for
            raise OutputError(f"{path} cannot be written: {lock} is in its way and no file; remove that.")
        try:
            file = lock.open("a")
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder.") from error
        try:
            _lock(file)
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
            file.close()  # who held it has just removed it, and a third one may have made a new one
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return file  # a file system without locks
            file.close()
            raise InUse(f"{path} is being made by another process; wait or choose another name.") from error


def _lock(file: IO[str]) -> None:
    """Lock an open file at once or fail; the system frees the lock when the process ends, however it ends."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
