"""Exploring a concept's boundary on the loaded model: what was found so far can be seen while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from erasure_core.boundary import Exploration, ExploreSettings, Point, explore
from erasure_core.boundary.exploration import ordered
from erasure_core.errors import ErasureError, OutputError

from . import places, saved
from .pages import reaching
from .subject import allowed, concept_of, stored
from .wishes import Wish
from .working import HostProgress, Job, loaded_model


@dataclass(frozen=True)
class Search:
    """An exploration that was asked for.

    Args:
        words, keep: the concept; without words that of the erasure.
        tries: prompts of the user's own.
        erasure: what is applied; ``None`` explores the untouched model.
        settings: how to search.
        latent_side: of the latents; ``None`` for the family's own.
    """

    words: tuple[str, ...]
    keep: tuple[str, ...]
    tries: tuple[str, ...]
    erasure: Wish | None
    settings: ExploreSettings
    latent_side: int | None = None


class Findings:
    """What the running or last exploration has found; read by other threads while it grows."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.found: Exploration | None = None
        self.name = ""
        self._points: list[Point] = []

    def begin(self, title: str) -> Job:
        """Forget the exploration before; returns the job of the new one."""
        self.job, self.found, self.name, self._points = Job(title), None, "", []
        return self.job

    def add(self, points: Sequence[Point]) -> None:
        """For ``explore``'s ``notify``."""
        self._points = list(points)

    def points(self) -> tuple[Point, ...]:
        """Every candidate so far, those that leak most first."""
        return self.found.points if self.found is not None else ordered(self._points)

    def told(self) -> str:
        """How many, for the progress bar."""
        return f"({reaching(self._points)})" if self._points else ""

    def last(self) -> tuple[Exploration | None, str]:
        """The last exploration and its name: of an earlier start of the web UI if there was none since."""
        if self.found is None and (self.job is None or self.job.status != "running"):
            newest = next(iter(saved.names(saved.EXPLORATIONS)), None)
            if newest is not None:
                self.found, self.name = saved.read_exploration(newest), newest
        return saved.showable(self.found) if self.found is not None else None, self.name


FINDINGS = Findings()


def run_explore(search: Search) -> Job:
    """Explore; never raises for what a user can cause. Call it under the host's queue.

    An interrupted search keeps what it has found. The job's ``file`` is the name under which the result was saved;
    empty if it could not be.
    """
    job = FINDINGS.begin("Exploring")
    started = time.monotonic()
    progress = HostProgress(job, 100, told=FINDINGS.told)
    try:
        settings, unkept = allowed(search.settings)
        files = [stored(search.erasure)] if search.erasure is not None else []
        concept = concept_of(search.words, search.keep, files)
        job.title = f"Exploring {concept.name!r}"
        model = loaded_model(search.latent_side)
        erasures = [
            (file.bind(model, places.allows_other_bases()), wish.unet)
            for file, wish in zip(files, [search.erasure] if search.erasure else [], strict=True)
        ]
        found = explore(model, concept, erasures, settings, progress, search.tries, notify=FINDINGS.add)
        where = files[0].path.stem if files else "untouched"
        FINDINGS.found = found
        try:
            job.file = FINDINGS.name = saved.save_exploration(found, f"{concept.name[:50]}-{where}")
            kept = f"Saved as {saved.EXPLORATIONS}/{job.file}."
        except OutputError as error:
            kept = f"It could not be saved: {places.told(error)}"
        stopped = " Stopped early; this is what was found until then." if found.stopped else _left_out(found, settings)
        job.message = f"{found.summary()}{stopped} {kept}{unkept}"
        job.status = "stopped" if found.stopped else "done"
    except ErasureError as error:
        job.status, job.message = "failed", places.told(error)
    finally:
        if job.status == "running":
            job.status, job.message = "failed", "An unexpected error ended the search; see the console."
        job.seconds = time.monotonic() - started
    return job


def _left_out(found: Exploration, settings: ExploreSettings) -> str:
    """Says so if searches that were asked for were not made: that nothing leaks would mean more otherwise."""
    missing = [level for level in settings.levels.split("+") if level not in found.levels]
    return f" Not searched, most often for want of seconds: {', '.join(missing)}." if missing else ""
