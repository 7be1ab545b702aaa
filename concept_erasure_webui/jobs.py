"""Erasing on the loaded model, under the host's queue, with its progress and its Interrupt."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modules import errors
from PIL import Image

from erasure_core.checkpoint import checkpoint_path
from erasure_core.chosen_words import chosen_words, sentence
from erasure_core.concept import Concept, left_out
from erasure_core.concept_pictures import reads_pictures
from erasure_core.effort import Effort
from erasure_core.errors import Cancelled, ErasureError, InvalidFile, InvalidSettings, OutputError
from erasure_core.hosts.webui import WebuiModel
from erasure_core.library import SUFFIX
from erasure_core.making import Hardening, Made, make_erasure, plain_name, request_key, training_path
from erasure_core.methods import Method, SolverSettings
from erasure_core.safe_files import check_regular, write_bytes

from . import places
from .given_pictures import concept_pictures
from .preview import Preview, before_and_after, prompts
from .unfinished import save_unfinished
from .working import HostProgress, Job, loaded_model

MOST_ROUNDS = 10
"""Rounds of hardening that can be asked for."""


@dataclass(frozen=True)
class Request:
    """A training that was asked for; kept where one ended before its end, so that it can be saved as it is.

    Args:
        concept, method, settings: as of ``make_erasure``.
        latent_side: of the training pictures; ``None`` for the family's own.
        hardening: rounds of searching for what still leaks and erasing that too.
        preview_every: training steps between two previews; 0 for none.
        pictures: of the concept, for methods that read them.
        name: of the file; empty for the concept's.
        compares: whether the concept and a kept prompt are painted without and with the erasure when it is done.
        effort: as of ``make_erasure``.

    Raises:
        InvalidSettings: rounds or preview steps out of range.
    """

    concept: Concept
    method: Method
    settings: SolverSettings
    latent_side: int | None = None
    hardening: Hardening | None = None
    preview_every: int = 0
    pictures: tuple[Image.Image, ...] = ()
    name: str = ""
    compares: bool = False
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        rounds = self.hardening.rounds if self.hardening is not None else 0
        if not 0 <= rounds <= MOST_ROUNDS:
            raise InvalidSettings(f"Harden is {rounds}; give 0 to {MOST_ROUNDS} rounds.")
        if self.preview_every < 0:
            raise InvalidSettings(f"The preview is every {self.preview_every} steps; give 0 for none, or more.")


class Jobs:
    """The last job of this web UI; the host's queue runs one at a time.

    ``stopped`` has what was asked for of every training that ended before its end, by the file it would have become.
    """

    def __init__(self) -> None:
        self.last: Job | None = None
        self.stopped: dict[Path, Request] = {}
        self._is_told = False

    def note(self) -> None:
        """Write the last job beside the library. The work goes on where that cannot be done; the console tells of it
        once."""
        if self.last is None:
            return
        try:
            write_bytes(_note_path(), json.dumps(asdict(self.last)).encode())
        except OutputError as error:
            if not self._is_told:
                errors.report(f"Concept Erasure: the last job is not noted down. {error}")
            self._is_told = True
        else:
            self._is_told = False

    def shown(self) -> Job | None:
        """The last job, of an earlier start of the web UI if there was none since."""
        if self.last is None:
            job = _noted()
            if job is None:
                return None
            if job.status == "running":
                job.status = "stopped"
                job.message = "The web UI ended during this work. The same request goes on with it."
            self.last = job
        return self.last


JOBS = Jobs()


def _note_path() -> Path:
    return places.folder() / ".last-job.json"


def _noted() -> Job | None:
    """The job that was written down; nothing if that is damaged, for it is only shown."""
    try:
        check_regular(_note_path())
        given = json.loads(_note_path().read_text(encoding="utf-8"))
        losses = [{str(name): float(value) for name, value in terms.items()} for terms in given.pop("losses", [])]
        given |= {name: float(given.get(name, 0.0)) for name in ("seconds", "left")}
        job, ours = Job(**given, losses=losses), Job("")
        is_whole = all(isinstance(value, type(getattr(ours, name))) for name, value in given.items())
        return job if is_whole else None
    except (InvalidFile, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def run_erase(request: Request) -> Job:
    """Erase a concept from the loaded model; never raises for what a user can cause. Call it under the host's queue."""
    job = JOBS.last = Job(f"Erasing {request.concept.name!r} with {request.method.title}")
    progress = HostProgress(job, getattr(_settings(request), "steps", 1), JOBS.note)
    try:
        model = loaded_model(request.latent_side)
        preview = Preview(model, request.concept, request.preview_every)
        progress.picture = lambda report: preview.after(report, progress)
        library, hardening = places.library(), request.hardening
        pictures = concept_pictures(model, request.pictures) if reads_pictures(request.method) else None
        # What is gone on with is the training, the same one whatever hardening follows.
        key = request_key(model, *_parts(request), pictures, effort=request.effort)
        job.output = str(training_path(library, request.concept, request.method, key))
        made = make_erasure(
            *(library, model, *_parts(request), progress),
            pictures=pictures,
            hardening=hardening,
            name=request.name,
            effort=request.effort,
        )
        job.losses = made.history.losses
        job.file, job.status = made.path.name, "done"
        again = " It was there already: the same request was made before." if made.reused else ""
        chosen = " ".join([*made.history.notes, sentence(chosen_words(request.concept, made.erasure.manifest))])
        told = f" {chosen}{_hardened(made)}{_unread(request)}{_left_out(request)}"
        job.message = f"Wrote {made.path.name}.{again}{told} Use it with <erase:{made.path.stem}:1>, or in the panel."
        if request.compares and not places.is_in_force():
            _compare(job, model, request.concept, made, progress)
    except Cancelled as stopped:
        job.status, job.message = "stopped", str(stopped)
    except ErasureError as error:
        job.status, job.message = "failed", places.told(error)
    finally:
        if job.status == "running":
            job.status, job.message = "failed", "An unexpected error ended the work; see the console."
        output = Path(job.output)
        JOBS.stopped.pop(output, None)
        if job.output and checkpoint_path(output).exists():
            JOBS.stopped[output] = request
            job.message += " The same request goes on with it; or save it as it is, or discard it."
        job.seconds = time.monotonic() - progress.started
        JOBS.note()
    return job


def _compare(job: Job, model: WebuiModel, concept: Concept, made: Made, progress: HostProgress) -> None:
    """Put the pictures before and after into the job; what hinders them takes nothing away from the erasure."""
    try:
        job.picture = before_and_after(model, concept, made.erasure.deltas, progress)
        job.painted = "Above without, below with the erasure, from the same noise: " + ", ".join(prompts(concept))
    except ErasureError as error:
        job.message += f" It was not painted before and after: {places.told(error)}"


def _left_out(request: Request) -> str:
    told = left_out(request.concept)
    return f" {told}" if told else ""


def _hardened(made: Made) -> str:
    """What the rounds of hardening did, in one sentence each."""
    rounds = made.erasure.manifest.settings.get("harden", [])
    return "".join(
        f" Round {number}: {one['leaking']} of {one['tried']} prompts still reached it, added: "
        f"{', '.join(one['added']) or 'nothing'}."
        for number, one in enumerate(rounds, 1)
    )


def _unread(request: Request) -> str:
    """Says so if the pictures that were given had no part in it."""
    if not request.pictures or reads_pictures(request.method):
        return ""
    return f" The pictures had no part in it: {request.method.title} does not read any."


def _parts(request: Request) -> tuple[Concept, Method, SolverSettings]:
    return request.concept, request.method, request.settings


def _settings(request: Request) -> SolverSettings:
    """What is trained with, as far as what was asked decides it."""
    return request.effort.settings(request.settings)


def unfinished() -> list[str]:
    """Names of the trainings that ended before their end and can be gone on with, the newest first: those of earlier
    starts too, but not where others use this web UI."""
    running = Path(JOBS.last.output) if JOBS.last is not None and JOBS.last.status == "running" else None
    found = {path.with_suffix("") for path in places.folder().glob(f"*{checkpoint_path(Path(SUFFIX)).name}")}
    if places.is_open_to_others():
        found &= set(JOBS.stopped)
    dated = [(checkpoint_path(output).stat().st_mtime_ns, output.stem) for output in found - {running}]
    return [stem for _, stem in sorted(dated, reverse=True)]


def _chosen(name: str | None) -> Path:
    """The file that an unfinished training would become: the newest one's for no name.

    Raises:
        InvalidSettings: there is none, or none of this name.
    """
    names = unfinished()
    if not names or (name and name not in names):
        raise InvalidSettings("There is no such interrupted training to save or discard; refresh the list.")
    return places.folder() / f"{name or names[0]}{SUFFIX}"


def save_stopped(name: str | None = None) -> str:
    """Make a file of an interrupted training as it is; returns a message.

    Raises:
        InvalidSettings: there is none, or what was asked for is not known any more.
        ErasureError: as ``save_unfinished``.
    """
    output = _chosen(name)
    request = JOBS.stopped.get(output)
    if request is None:
        raise InvalidSettings(
            f"{output.stem} was interrupted before the web UI was started; ask for the same again, which goes on with "
            "it, or discard it."
        )
    target = places.library().free_path(f"{plain_name(request.name, request.concept)}-unfinished")
    asked = (request.concept, request.method, _settings(request))
    steps = save_unfinished(loaded_model(request.latent_side), *asked, checkpoint_path(output), target)
    return f"Wrote {target.name} after {steps} steps. The state is kept; the same request goes on with it."


def discard_stopped(name: str | None = None) -> str:
    """Throw the state of an interrupted training away; returns a message.

    Raises:
        InvalidSettings: there is none.
    """
    output = _chosen(name)
    checkpoint_path(output).unlink(missing_ok=True)
    JOBS.stopped.pop(output, None)
    return f"The interrupted training {output.stem} was discarded."
