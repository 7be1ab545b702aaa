"""Report cards of one or several erasures, measured on the loaded model."""

from __future__ import annotations

import time
from dataclasses import dataclass

from erasure_core.boundary.report import ReportSettings, report
from erasure_core.boundary.report_card import ReportCard
from erasure_core.boundary.report_page import merge_into_manifest, refuse_other_figures
from erasure_core.boundary.verdict import refuse_mixed
from erasure_core.errors import Cancelled, ErasureError, InvalidSettings, OutputError
from erasure_core.profile import refuse_if_pinned

from . import places, saved
from .subject import allowed, concept_of, stored, subjected
from .wishes import Wish
from .working import HostProgress, Job, loaded_model

MOST_FILES = 8


@dataclass(frozen=True)
class Measurement:
    """A report card that was asked for.

    Args:
        erasures: what is measured, side by side.
        words, keep: the concept; without words that of the first erasure that tells one.
        tries: prompts of the user's own that should not reach it any more.
        settings: how much to measure.
        latent_side: of the latents and pictures; ``None`` for the family's own.
        merge: whether the figures go into the files' own manifests.

    Raises:
        InvalidSettings: no erasure or too many, or one of them twice.
    """

    erasures: tuple[Wish, ...]
    words: tuple[str, ...]
    keep: tuple[str, ...]
    tries: tuple[str, ...]
    settings: ReportSettings
    latent_side: int | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.erasures) <= MOST_FILES:
            raise InvalidSettings(f"{len(self.erasures)} erasures are chosen; choose 1 to {MOST_FILES} to measure.")
        if len(set(self.erasures)) < len(self.erasures):
            raise InvalidSettings("An erasure is chosen twice at the same strength; choose each once.")


def run_report(wanted: Measurement) -> tuple[Job, ReportCard | None]:
    """Measure; never raises for what a user can cause. Call it under the host's queue.

    Returns:
        The job, whose ``file`` is the name under which the report was saved (empty if it could not be), and the report,
        if it was finished.
    """
    job, card = Job("Measuring"), None
    started = time.monotonic()
    progress = HostProgress(job, 100)
    try:
        if wanted.merge:
            places.refuse_if_open_to_others("Writing figures into files")
        settings, unkept = allowed(wanted.settings)
        files = [stored(wish) for wish in wanted.erasures]
        for file in files if wanted.merge else ():
            refuse_if_pinned(places.folder(), places.library(), file.path)
        concept = concept_of(wanted.words, wanted.keep, files)
        if not wanted.words:
            refuse_mixed(concept, [(file.path, file.manifest) for file in files], "write")
        for wish, file in zip(wanted.erasures, files, strict=True) if wanted.merge else ():
            refuse_other_figures(file.path, file.manifest, concept.words, wish.unet)
        job.title = f"Measuring {concept.name!r}"
        model = loaded_model(wanted.latent_side)
        measured = [subjected(wish, file, model) for wish, file in zip(wanted.erasures, files, strict=True)]
        card = report(model, concept, measured, settings, progress, wanted.tries)
        what = files[0].path.stem if len(files) == 1 else f"{concept.name[:50]}-compared"
        try:
            job.file = saved.save_report(card, what)
            job.message = f"Saved as {saved.REPORTS}/{job.file}.{unkept}"
        except OutputError as error:
            job.message = f"The report card could not be saved: {places.told(error)}{unkept}"
        if wanted.merge:
            for number, file in enumerate(files):
                merge_into_manifest(file.path, card, number)
            job.message += " The figures are in the files."
        job.status = "done"
    except Cancelled:
        job.status, job.message = "stopped", "Stopped; a report card that is not whole is not shown."
    except ErasureError as error:
        job.status, job.message = "failed", places.told(error)
    finally:
        if job.status == "running":
            job.status, job.message = "failed", "An unexpected error ended the work; see the console."
        job.seconds = time.monotonic() - started
    return job, card
