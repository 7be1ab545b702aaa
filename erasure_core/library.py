"""A host's folders of erasure files: listing, safe names, and the file that a request has made."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import InvalidFile
from .manifest import Manifest
from .safe_files import is_unicode, read_header

SUFFIX = ".safetensors"
MAX_NAME = 150
"""Bytes of a name that becomes a file's, without what is put behind it. File systems allow 255."""
MAX_STEM = 200
"""Bytes of a new file's name without its suffix: room for the method and the hash of a request behind a name."""
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True)
class Entry:
    """One file of a library.

    Args:
        name: path below the library's folder, with forward slashes.
        path: where it is.
        manifest: the description; ``None`` for a plain LoRA.
        problem: why the file cannot be used, or an empty text.
    """

    name: str
    path: Path
    manifest: Manifest | None
    problem: str = ""


class Library:
    """Folders with erasure files. The first one is where new files go.

    Args:
        folders: at least one; they need not exist yet.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]

    def names(self) -> list[str]:
        """All files by name, sorted as they are shown, without the suffix; a name in two folders is listed once."""
        names = {name for folder in self.folders for name in _files(folder)}
        return sorted(names, key=lambda name: name.removesuffix(SUFFIX).casefold())

    def find(self, name: str) -> Path:
        """The file of a name, which anyone may have sent.

        Raises:
            InvalidFile: the name leads out of the folders, or there is no such file.
        """
        relative = confined(name)
        for folder in self.folders:
            if os.path.isfile(folder / relative):  # pathlib raises an error for a name that is too long
                return folder / relative
        raise InvalidFile(f"There is no erasure {name!r} in {self.folders[0]}; copy the file there or choose another.")

    def entry(self, name: str) -> Entry:
        """What a file says about itself, read from its header alone; raises as ``find``."""
        path = self.find(name)
        try:
            return Entry(name, path, read_manifest(path))
        except InvalidFile as error:
            return Entry(name, path, None, str(error))

    def new_path(self, stem: str) -> Path:
        """Where a new file of this name goes, whatever characters the name holds; it may exist already."""
        return self.folders[0] / f"{safe_stem(stem, MAX_STEM)}{SUFFIX}"

    def free_path(self, stem: str, taken: Container[Path] = ()) -> Path:
        """As ``new_path``, with a number behind the name if there is such a file or it is ``taken``: no file is ever
        overwritten."""
        first = path = self.new_path(stem)
        number = 1
        while path.exists() or path in taken:
            number += 1
            path = first.with_name(f"{first.stem}-{number}{SUFFIX}")  # behind the cut, or a long name stays taken
        return path

    def made_by(self, requests: Sequence[str]) -> dict[str, list[Path]]:
        """For each request the files where new ones go that it has made, whatever they are called now; not those in
        folders below, which may be copies for another purpose. Each file's header is read once for all of them."""
        found: dict[str, list[Path]] = {request: [] for request in requests}
        for name in sorted(name for name in _files(self.folders[0]) if "/" not in name):
            path = self.folders[0] / name
            with contextlib.suppress(InvalidFile):  # a damaged one is nobody's
                manifest = read_manifest(path)
                if manifest is not None and manifest.request in found:
                    found[manifest.request].append(path)
        return found


def confined(name: str) -> PurePosixPath:
    """A relative path that stays below the folder it is put behind.

    Raises:
        InvalidFile: absolute, leading upwards, hidden, or not the name of a file of ours.
    """
    path = PurePosixPath(name)
    parts_are_plain = all(part not in ("", ".", "..") and not part.startswith(".") for part in path.parts)
    if path.is_absolute() or not path.parts or not parts_are_plain or re.search(r'[\\:\x00-\x1f<>"|?*]', name):
        raise InvalidFile(f"{name!r} is not a file name below the folder of erasures; choose a listed one.")
    if path.suffix != SUFFIX:
        raise InvalidFile(f"{name!r} is not a {SUFFIX} file; only those are read.")
    return path


def safe_stem(text: str, most: int = MAX_NAME) -> str:
    """A file name, without suffix, that every file system takes: at most ``most`` bytes of the text's own."""
    plain = re.sub(r"[^\w.-]+", "_", text).strip("._-").encode()[:most]
    words = plain.decode(errors="ignore").rstrip("._-") or "erasure"
    return f"_{words}" if words.split(".")[0].casefold() in RESERVED else words


def _files(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        for path in folder.rglob(f"*{SUFFIX}"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and is_unicode(path) and _is_confined(name):
                yield name


def _is_confined(name: str) -> bool:
    try:
        confined(name)
    except InvalidFile:
        return False
    return True


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file's header; ``None`` for a file without one.

    Raises:
        InvalidFile: missing, damaged or hostile.
    """
    text = read_header(path).get("__metadata__", {}).get("erasure")
    return None if text is None else Manifest.from_json(str(text))
