"""A host's folders of erasure files: listing, safe names, and making a file once for each set of inputs.

Both front ends keep finished erasures as plain files. The name of a file that was made here ends in a hash of all that
decides its content, so that the same request finds it again, in a new session and after the host has lost its caches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from . import guard
from .boundary.explore import ExploreSettings
from .boundary.harden import Finished, harden, rounds_of
from .checkpoint import checkpoint_path, identity
from .concept import Concept
from .concept_pictures import ConceptPictures
from .delta import DeltaSet
from .erasure_file import Erasure, read_erasure, write_erasure
from .errors import Cancelled, ErasureError, InvalidFile, OutputError, is_out_of_memory
from .fingerprint import SAMPLES
from .history import History
from .layers import select
from .manifest import Manifest
from .methods import Method, SolverSettings
from .model import LoadedModel, PromptModel
from .progress import Progress
from .safe_files import check_regular, exclusive, is_unicode, read_header, write_bytes
from .trainer import SAVE_EVERY

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
    return _key(_request(model, concept, method, settings, pictures), hardening)


def _request(
    model: LoadedModel, concept: Concept, method: Method, settings: SolverSettings, pictures: ConceptPictures | None
) -> str:
    layers = select(model.layers(), settings.layers)
    return identity(model, concept, method.name, settings, layers, pictures) + model_state(model)


def _key(request: str, hardening: Hardening | None) -> str:
    text = request
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

    A training that was stopped goes on where it stopped. With hardening, the first erasing and each round are files as
    well, those that requests of so many rounds make: what comes behind them may fail or be stopped, and goes on from
    the last. Those of rounds are removed again once the whole request is done.

    Args:
        library: where files are looked for and written.
        model, concept, settings, progress: as of ``erase``.
        method: a registered method.
        save_every: seconds between two saves of the resumable state.
        pictures: of the concept, for methods that read them.
        hardening: rounds of searching for what leaks and erasing that too. Where one of them fails, what is made is the
            erasure before it, with a note in its history.

    Raises:
        InvalidConcept: the guard refuses the search that hardening asks for.
        ErasureError: as ``erase`` and ``write_erasure``; after Cancelled or OutOfMemory the state is kept.
    """
    request = _request(model, concept, method, settings, pictures)
    stem = f"{safe_stem(concept.name)[:60]}-{method.name}"
    stages = [None] if hardening is None else [replace(hardening, rounds=n) for n in range(hardening.rounds + 1)]
    paths = [library.new_path(f"{stem}-{_key(request, stage)}") for stage in stages]
    _make_folder(paths[0].parent)

    def erased() -> Made:
        checkpoint = checkpoint_path(paths[0])
        erasure, history, _ = harden(
            model, concept, 0, method.name, settings, None, progress, checkpoint, save_every, pictures
        )
        made = _written(paths[0], erasure, history, model)
        checkpoint.unlink(missing_ok=True)
        return made

    def searched(before: Erasure, finished: Finished) -> Erasure:
        assert hardening is not None
        how = (method.name, settings, hardening.search, progress, None, save_every, pictures)
        return harden(model, concept, hardening.rounds, *how, finished=finished, start=before)[0]

    def first() -> Made:
        return _once(paths[0], model, erased)

    if hardening is None or not hardening.rounds:
        return first()
    return _once(paths[-1], model, lambda: _hardened(paths, model, concept, first, searched))


def _once(path: Path, model: LoadedModel, make: Callable[[], Made]) -> Made:
    """What a request has made before, or makes now; nobody else makes it meanwhile."""
    with exclusive(path):
        found = _found(path, model)
        return make() if found is None else found


def _hardened(
    paths: Sequence[Path],
    model: LoadedModel,
    concept: Concept,
    first: Callable[[], Made],
    searched: Callable[[Erasure, Finished], Erasure],
) -> Made:
    """The rounds behind the first erasing, from the last one that there is a file of.

    Args:
        paths: where the erasure of each number of rounds is kept.
        model, concept: as of ``make_erasure``.
        first: makes the first erasing, or finds it.
        searched: the rounds behind an erasure, each given to a callback when it is finished.
    """
    guard.check(concept)  # before a training of hours
    kept = _farthest(paths, model) or first()
    between: list[Path] = []

    def keep(erasure: Erasure) -> None:
        nonlocal kept
        kept = _written(paths[len(rounds_of(erasure.manifest.settings))], erasure, kept.history, model)
        between.append(kept.path)

    try:
        erasure = searched(kept.erasure, keep)
    except Cancelled as stopped:
        raise Cancelled(f"{stopped} {_holds(kept)}") from None
    except Exception as error:
        if not isinstance(error, ErasureError) and not is_out_of_memory(error):
            raise
        why = error if isinstance(error, ErasureError) else "The device has too little memory for it."
        note = f"The hardening ended early: {why} {_holds(kept)}"
        return replace(kept, history=replace(kept.history, notes=[*kept.history.notes, note]), reused=False)
    made = kept if kept.path == paths[-1] else _written(paths[-1], erasure, kept.history, model)
    _remove(set(between) - {made.path})
    return made


def _farthest(paths: Sequence[Path], model: LoadedModel) -> Made | None:
    """The erasure of the most rounds that there is a file of; only the last round of a request may have found nothing
    and trained nothing, and the loop ends there by itself."""
    for number, path in reversed(list(enumerate(paths[:-1]))):
        found = _found(path, model)
        if found is not None and (not number or 1 <= len(rounds_of(found.erasure.manifest.settings)) <= number):
            return found
    return None


def _holds(kept: Made) -> str:
    rounds = len(rounds_of(kept.erasure.manifest.settings))
    when = f"after round {rounds}" if rounds else "before the first round"
    return f"{kept.path.name} holds the erasure as it was {when}; the same request goes on from it."


def _remove(paths: Iterable[Path]) -> None:
    """Remove files of rounds that others came behind, but for those that another process asks for just now."""
    for path in paths:
        with contextlib.suppress(OutputError), exclusive(path):
            path.unlink(missing_ok=True)
            history_path(path).unlink(missing_ok=True)


def _written(path: Path, erasure: Erasure, history: History, model: LoadedModel) -> Made:
    """A new file, told as it is read back: what is painted with now is what it holds, to the last bit."""
    write_erasure(path, erasure, model)
    write_bytes(history_path(path), json.dumps(asdict(history)).encode())
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
        return History(
            losses, residual, figures, [str(note) for note in raw.get("notes", [])], float(raw.get("seconds", 0.0))
        )
    except (InvalidFile, OSError, ValueError, TypeError, KeyError, AttributeError):
        return History()


def _numbers(named: dict[Any, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in named.items()}
