"""A host's folders of erasure files: listing, safe names, and making a file once for each set of inputs.

Both front ends keep finished erasures as plain files. The name of a file that was made here ends in a hash of all that
decides its content, so that the same request finds it again, in a new session and after the host has lost its caches.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from .boundary.explore import ExploreSettings
from .boundary.harden import harden
from .checkpoint import checkpoint_path, identity
from .concept import Concept
from .concept_pictures import ConceptPictures
from .delta import DeltaSet
from .erasure_file import Erasure, read_erasure, write_erasure
from .errors import ErasureError, InvalidFile, OutputError
from .fingerprint import SAMPLES
from .layers import select
from .manifest import Manifest
from .methods import Method, SolverSettings
from .model import LoadedModel, PromptModel
from .progress import Progress
from .safe_files import check_regular, exclusive, is_unicode, read_header, write_bytes
from .trainer import SAVE_EVERY, History

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


@dataclass(frozen=True)
class Hardening:
    """What follows an erasing: so many rounds of searching for what still leaks and erasing that too.

    Args:
        rounds: most rounds; 0 for none.
        search: how each of them searches.
    """

    rounds: int
    search: ExploreSettings


@dataclass(frozen=True)
class Made:
    """An erasure that was asked for.

    Args:
        path: the file.
        erasure: its content.
        history: what happened in training, also if that was in an earlier session.
        reused: whether the file was there already.
    """

    path: Path
    erasure: Erasure
    history: History
    reused: bool


class Library:
    """Folders with erasure files. The first one is where new files go.

    Args:
        folders: at least one; they need not exist yet.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]

    def names(self) -> list[str]:
        """All files by name, sorted; a name in two folders is listed once."""
        return sorted({name for folder in self.folders for name in _files(folder)}, key=str.casefold)

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

    def free_path(self, stem: str) -> Path:
        """As ``new_path``, with a number behind the name if that is taken: no file is ever overwritten."""
        first = path = self.new_path(stem)
        number = 1
        while path.exists():
            number += 1
            path = first.with_name(f"{first.stem}-{number}{SUFFIX}")  # behind the cut, or a long name stays taken
        return path


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


@torch.no_grad()
def model_state(model: LoadedModel) -> str:
    """A hash of the weights as the model computes with them now, LoRAs that the host has merged in included, and of
    the size of the pictures.

    Large layers are read at even distances: a change of a layer shows there as well.
    """
    digest = hashlib.sha256(f"{model.family} {model.latent_shape}".encode())
    for name in sorted(model.layers()):
        weight = model.weight(name).detach().flatten()
        sample = weight[:: max(1, -(-len(weight) // SAMPLES))].to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {len(weight)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def request_key(
    model: LoadedModel,
    concept: Concept,
    method: Method,
    settings: SolverSettings,
    pictures: ConceptPictures | None = None,
    hardening: Hardening | None = None,
) -> str:
    """A hash of all that decides what an erasure becomes, 12 hexadecimal digits."""
    layers = select(model.layers(), settings.layers)
    text = identity(model, concept, method.name, settings, layers, pictures) + model_state(model)
    if hardening is not None and hardening.rounds:
        text += json.dumps(asdict(hardening), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_erasure(
    library: Library,
    model: PromptModel,
    concept: Concept,
    method: Method,
    settings: SolverSettings,
    progress: Progress,
    save_every: float = SAVE_EVERY,
    pictures: ConceptPictures | None = None,
    hardening: Hardening | None = None,
) -> Made:
    """Erase a concept and write the file, or find the file that the same request has made before.

    A training that was stopped goes on where it stopped.

    Args:
        library: where files are looked for and written.
        model, concept, settings, progress: as of ``erase``.
        method: a registered method.
        save_every: seconds between two saves of the resumable state.
        pictures: of the concept, for methods that read them.
        hardening: rounds of searching for what leaks and erasing that too.

    Raises:
        InvalidConcept: the guard refuses the search that hardening asks for.
        ErasureError: as ``erase`` and ``write_erasure``; after Cancelled or OutOfMemory the state is kept.
    """
    key = request_key(model, concept, method, settings, pictures, hardening)
    path = library.new_path(f"{safe_stem(concept.name)[:60]}-{method.name}-{key}")
    _make_folder(path.parent)
    with exclusive(path):
        found = _found(path, model)
        if found is not None:
            return found
        checkpoint = checkpoint_path(path)
        rounds, search = (hardening.rounds, hardening.search) if hardening is not None else (0, None)
        erasure, history, _ = harden(
            model, concept, rounds, method.name, settings, search, progress, checkpoint, save_every, pictures
        )
        write_erasure(path, erasure, model)
        write_bytes(history_path(path), json.dumps(asdict(history)).encode())
        checkpoint.unlink(missing_ok=True)
    # What is painted with and told now is what the file holds, to the last bit.
    stored = read_erasure(path)
    assert stored.manifest is not None
    return Made(path, Erasure(stored.bind(model), stored.manifest), history, False)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made ({error.strerror}); check its rights.") from error


def _found(path: Path, model: LoadedModel) -> Made | None:
    """The finished file of an earlier session, if it is whole."""
    if not path.exists():
        return None
    try:
        stored = read_erasure(path)
        deltas: DeltaSet = stored.bind(model)
    except ErasureError:
        return None  # damaged meanwhile: it is made again
    return None if stored.manifest is None else Made(path, Erasure(deltas, stored.manifest), _history(path), True)


def history_path(path: Path) -> Path:
    """Where the history of an erasure's training lies, beside its file."""
    return path.with_suffix(".history.json")


def _history(path: Path) -> History:
    """What was noted beside a file; empty if that is lost, for it is only shown."""
    try:
        beside = history_path(path)
        check_regular(beside)
        raw = json.loads(beside.read_text(encoding="utf-8"))
        losses = [_numbers(terms) for terms in raw["losses"]]
        residual = [(int(step), float(value)) for step, value in raw["residual_guidance"]]
        figures = [(int(step), _numbers(found)) for step, found in raw.get("figures", [])]
        return History(losses, residual, figures, [str(note) for note in raw.get("notes", [])])
    except (InvalidFile, OSError, ValueError, TypeError, KeyError, AttributeError):
        return History()


def _numbers(named: dict[Any, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in named.items()}
