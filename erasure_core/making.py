"""Making a file once for each set of inputs.

Both front ends keep finished erasures as plain files. The manifest of a file that was made here has a hash of all that
decides its content, so that the same request finds it again, in a new session, after the host has lost its caches, and
under another name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import guard
from .boundary.explore import ExploreSettings
from .boundary.harden import Finished, harden, rounds_of
from .checkpoint import checkpoint_path, identity
from .concept import Concept
from .concept_pictures import ConceptPictures
from .effort import Effort
from .erasure_file import Erasure, read_erasure, write_erasure
from .errors import Cancelled, ErasureError, InUse, InvalidFile, OutputError, is_out_of_memory
from .fingerprint import SAMPLES
from .history import History
from .layers import select
from .library import SUFFIX, Library, safe_stem
from .methods import Method, SolverSettings
from .model import LoadedModel, PromptModel
from .progress import Progress
from .safe_files import check_regular, exclusive, write_bytes
from .trainer import SAVE_EVERY


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
    effort: Effort | None = None,
) -> str:
    """A hash of all that decides what an erasure becomes, 12 hexadecimal digits."""
    return _key(_request(model, concept, method, settings, pictures, effort or Effort()), hardening)


def _request(
    model: LoadedModel,
    concept: Concept,
    method: Method,
    settings: SolverSettings,
    pictures: ConceptPictures | None,
    effort: Effort,
) -> str:
    """What was asked for. What low-vram picks is no part of it: the same request must find its file again, and its
    training, whatever is free by then."""
    settings = effort.settings(settings)
    layers = select(model.layers(), settings.layers)
    wanted = identity(model, concept, method.name, settings, layers, pictures) + model_state(model)
    return wanted + ("" if effort.rest == Effort() else effort.name)


def _key(request: str, hardening: Hardening | None) -> str:
    text = request
    if hardening is not None and hardening.rounds:
        text += json.dumps(asdict(hardening), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def training_path(library: Library, concept: Concept, method: Method, key: str) -> Path:
    """By this path the training of a request is known until it is finished; see ``checkpoint_path``. The file itself
    gets a name for people."""
    return library.new_path(f"{safe_stem(concept.name)[:60]}-{method.name}-{key}")


def plain_name(name: str, concept: Concept) -> str:
    """The stem of a new erasure's file: the name that was wished for, or the concept's."""
    wished = name.strip().removesuffix(SUFFIX)
    return safe_stem(wished) if wished else safe_stem(concept.name)[:60]


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
    name: str = "",
    effort: Effort | None = None,
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
        name: of a new file, with a number behind it where that is taken; by default the concept's. A file that is
            found keeps the name that it has.
        effort: as of ``erase``.

    Raises:
        InvalidConcept: the guard refuses the search that hardening asks for.
        ErasureError: as ``erase`` and ``write_erasure``; after Cancelled or OutOfMemory the state is kept.
    """
    request = _request(model, concept, method, settings, pictures, effort or Effort())
    stages = [None] if hardening is None else [replace(hardening, rounds=n) for n in range(hardening.rounds + 1)]
    keys = [_key(request, stage) for stage in stages]
    trainings = [training_path(library, concept, method, key) for key in keys]
    order = _Order(library, model, keys, trainings, plain_name(name, concept))
    _make_folder(library.folders[0])

    def erased() -> Made:
        checkpoint = checkpoint_path(trainings[0])
        how = (method.name, settings, None, progress, checkpoint, save_every, pictures)
        erasure, history, _ = harden(model, concept, 0, *how, effort=effort)
        made = order.written(0, erasure, history)
        checkpoint.unlink(missing_ok=True)
        return made

    def searched(before: Erasure, finished: Finished) -> Erasure:
        assert hardening is not None
        how = (method.name, settings, hardening.search, progress, None, save_every, pictures)
        return harden(model, concept, hardening.rounds, *how, finished=finished, start=before, effort=effort)[0]

    def first() -> Made:
        return order.once(0, erased)

    if hardening is None or not hardening.rounds:
        return first()
    return order.once(hardening.rounds, lambda: _hardened(order, concept, first, searched))


@dataclass(frozen=True)
class _Order:
    """A request, and the files of each number of its rounds.

    Args:
        library, model: as of ``make_erasure``.
        keys: of the request with each number of rounds.
        trainings: by which path each is known while it is made.
        name: of the whole request's file.
    """

    library: Library
    model: LoadedModel
    keys: Sequence[str]
    trainings: Sequence[Path]
    name: str

    def once(self, rounds: int, make: Callable[[], Made]) -> Made:
        """What the request has made before, or makes now; nobody else makes it meanwhile."""
        with exclusive(self.trainings[rounds]):
            found = self.found(rounds)
            return make() if found is None else found

    def found(self, rounds: int) -> Made | None:
        """The finished file of an earlier session, if it is whole; what is damaged is made again."""
        key = self.keys[rounds]
        return self._whole(self.library.made_by([key])[key])

    def _whole(self, paths: Sequence[Path]) -> Made | None:
        for path in paths:
            with contextlib.suppress(ErasureError):
                stored = read_erasure(path)
                if stored.manifest is not None:
                    return Made(path, Erasure(stored.bind(self.model), stored.manifest), _history(path), True)
        return None

    def written(self, rounds: int, erasure: Erasure, history: History) -> Made:
        """A new file, told as it is read back: what is painted with now is what it holds, to the last bit."""
        path = self._write(rounds, erasure)
        write_bytes(history_path(path), json.dumps(asdict(history)).encode())
        stored = read_erasure(path)
        assert stored.manifest is not None
        return Made(path, Erasure(stored.bind(self.model), stored.manifest), history, False)

    def _write(self, rounds: int, erasure: Erasure) -> Path:
        """Under the first free name: one that another process takes just now must not lose the training."""
        manifest = replace(erasure.manifest, request=self.keys[rounds])
        taken: set[Path] = set()
        while True:
            path = self.library.free_path(self._name(rounds), taken)
            with contextlib.suppress(InUse), exclusive(path):
                if not path.exists():  # or another process was quicker
                    write_erasure(path, replace(erasure, manifest=manifest), self.model)
                    return path
            taken.add(path)

    def _name(self, rounds: int) -> str:
        if rounds == len(self.keys) - 1:
            return self.name
        return f"{self.name}-round-{rounds}" if rounds else f"{self.name}-unhardened"

    def farthest(self) -> Made | None:
        """The erasure of the most rounds before the last that there is a file of; only the last round of a request may
        have found nothing and trained nothing, and the loop ends there by itself."""
        made = self.library.made_by(self.keys[:-1])
        for number in reversed(range(len(self.keys) - 1)):
            found = self._whole(made[self.keys[number]])
            if found is not None and (not number or 1 <= len(rounds_of(found.erasure.manifest.settings)) <= number):
                return found
        return None

    def remove(self, rounds: int, path: Path) -> None:
        """Remove the file of a round that others came behind, unless another process asks for it just now. Where it
        cannot be removed it is in nobody's way."""
        with contextlib.suppress(OutputError, OSError), exclusive(self.trainings[rounds]):
            path.unlink(missing_ok=True)
            history_path(path).unlink(missing_ok=True)


def _hardened(
    order: _Order,
    concept: Concept,
    first: Callable[[], Made],
    searched: Callable[[Erasure, Finished], Erasure],
) -> Made:
    """The rounds behind the first erasing, from the last one that there is a file of.

    Args:
        order: the request.
        concept: as of ``make_erasure``.
        first: makes the first erasing, or finds it.
        searched: the rounds behind an erasure, each given to a callback when it is finished.
    """
    guard.check(concept)  # before a training of hours
    last = len(order.keys) - 1
    kept = order.farthest() or first()
    between: dict[int, Path] = {}

    def keep(erasure: Erasure) -> None:
        nonlocal kept
        rounds = len(rounds_of(erasure.manifest.settings))
        kept = order.written(rounds, erasure, kept.history)
        between[rounds] = kept.path

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
    made = kept if last in between else order.written(last, erasure, kept.history)
    for rounds, path in between.items():
        if rounds != last:
            order.remove(rounds, path)
    return made


def _holds(kept: Made) -> str:
    rounds = len(rounds_of(kept.erasure.manifest.settings))
    when = f"after round {rounds}" if rounds else "before the first round"
    return f"{kept.path.name} holds the erasure as it was {when}; the same request goes on from it."


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made ({error.strerror}); check its rights.") from error


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
