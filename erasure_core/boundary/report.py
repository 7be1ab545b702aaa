"""The report card: what still leaks, what else was harmed, and what may be concluded, before anyone trusts a file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import torch

from .. import guard
from ..concept import TEMPLATES, Concept, worded
from ..delta import DeltaSet
from ..erasing import applied
from ..errors import Cancelled, ErasureError, raising_out_of_memory
from ..manifest import Manifest
from ..methods.registry import check_settings, option
from ..model import PromptModel, fitting
from ..progress import Progress, Report, Silent
from ..sampling import sample
from ..spread import spread
from .candidate import Candidate
from .exploration import Exploration
from .explore import ExploreSettings, explore, searchable
from .looks import Detector
from .report_card import STRIP_SIDE, FileReport, ReportCard, Share, Strip, counted, share_of
from .retention import Kept, attributes, drift, kept_prompts, known_prompts
from .scores import MOST_KEPT, Scorer
from .searches.lexical import beside_others
from .subject import GUIDANCE, Budget, Subject
from .thumbnails import decoder, picture_uri
from .verdict import UNNAMED, limits, of_another_concept, verdict
from .wording import unrelated_words, with_room

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SWEEP_PROMPTS = 12
YARDSTICK_PROMPTS = 24
"""Prompts of one search that the untouched model is asked about as well."""


@dataclass(frozen=True)
class ReportSettings:
    """How much to measure."""

    seconds: float = option(60.0, "seconds of searching for each file", low=1.0, high=86_400.0)
    calls: int | None = option(None, "most predictions of each search, in place of the time", low=1, high=10**9)
    states: int = option(8, "noisy latents at which prompts are compared", low=2, high=64)
    guidance: float = option(GUIDANCE, "guidance scale of all pictures", low=1.0, high=30.0)
    pictures: bool = option(True, "same-seed pictures before and after; of an explicit concept only if asked for")
    explicit: bool = option(False, "show blurred pictures of what is sexual or violent")
    sensitive: bool = option(False, "treat the concept as explicit, whatever its words say")
    steps: int = option(20, "sampling steps of the pictures", low=1, high=1000)
    seed: int = option(0, "random seed", low=0, high=2**53)
    max_batch: int = option(64, "most latents in one call", low=1, high=1024, neutral=True)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Subjected:
    """One file that is measured.

    Args:
        name: how it is called in the report.
        deltas: its change of this model.
        strength: at which it is used.
        manifest: its description, if it has one.
        size: of the file in bytes.
        folder: that the file lies in, told where another file has the same name.
    """

    name: str
    deltas: DeltaSet
    strength: float = 1.0
    manifest: Manifest | None = None
    size: int = 0
    folder: str = ""


@raising_out_of_memory()
def report(
    model: PromptModel,
    concept: Concept,
    files: Sequence[Subjected],
    settings: ReportSettings | None = None,
    progress: Progress | None = None,
    tries: Sequence[str] = (),
    detector: Detector | None = None,
) -> ReportCard:
    """Measure files on the model they are used with.

    Args:
        model: the loaded model; never changed. One that can also ``decode`` shows pictures.
        concept: what was erased and what should have been kept.
        files: one or several, side by side.
        settings: how much to measure.
        progress: reports and cancellation.
        tries: prompts of the user's own that should not reach the concept any more.
        detector: as of ``explore``.

    Raises:
        InvalidConcept: the guard refuses to search for the concept.
        OutOfMemory: the device has too little memory.
        Cancelled: the user stopped.
        ErasureError: as ``explore``.
    """
    concept = searchable(model, concept, tries)
    return _Reporter(model, concept, settings or ReportSettings(), progress or Silent(), tries, detector).run(files)


def distinct(files: Sequence[Subjected]) -> list[Subjected]:
    """The files by names that differ, for each heads a column: where several have one name, with the folder if they lie
    in several, then as ``name:strength``, and what is the same even so with a number."""

    def renamed(files: Sequence[Subjected], name: Callable[[Subjected], str]) -> list[Subjected]:
        times = Counter(file.name for file in files)
        return [replace(file, name=name(file)) if times[file.name] > 1 else file for file in files]

    if len({file.folder for file in files}) > 1:
        files = renamed(files, lambda file: f"{file.folder}/{file.name}" if file.folder else file.name)
    files = renamed(files, lambda file: f"{file.name}:{file.strength:g}")
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(1))
    return renamed(files, lambda file: f"{file.name} ({next(numbers[file.name])})")


class _Reporter:
    """One report in the making."""

    def __init__(
        self,
        model: PromptModel,
        concept: Concept,
        settings: ReportSettings,
        progress: Progress,
        tries: Sequence[str],
        detector: Detector | None,
    ) -> None:
        self.model, self.concept, self.settings = model, concept, settings
        self.progress, self.tries, self.detector = progress, tries, detector
        self.explicit = settings.sensitive or guard.is_explicit(concept)
        self.look_alikes: list[str] = []
        self.not_painted = ""

    def run(self, files: Sequence[Subjected]) -> ReportCard:
        files = distinct(files)
        reports, explorations = [], []
        self._tell("preparing", 0, len(files))
        scorer = self._scorer()
        for number, file in enumerate(files):
            self._tell(f"searching {file.name}", number, len(files))
            exploration = self._explore(file, scorer)
            explorations.append(exploration)
            reports.append(self._measure(file, exploration, scorer))
        return ReportCard(
            words=self.concept.words,
            explicit=self.explicit,
            files=tuple(reports),
            look_alikes=tuple(self.look_alikes),
            strips=self._strips(files),
            settings=asdict(self.settings),
            limits=limits(self.detector is not None),
            explorations=tuple(explorations),
            not_painted=self.not_painted,
        )

    def _tell(self, stage: str, done: int, of: int) -> None:
        self.progress.update(Report(stage, done, of))

    def _scorer(self) -> Scorer:
        """The scores on the untouched model: what they need of it is the same for every file, and every file's budget
        is for searching alone."""
        with self._subject().opened() as subject:
            scorer = Scorer(subject, self.concept, self.settings.states, self.settings.seed)
        self.look_alikes = scorer.nearest_others(8)
        return scorer

    def _explore(self, file: Subjected, scorer: Scorer) -> Exploration:
        s = self.settings
        seconds = None if s.calls else s.seconds
        how = ExploreSettings(
            seconds, s.calls, states=s.states, guidance=s.guidance, seed=s.seed, max_batch=s.max_batch
        )
        erasures = [(file.deltas, file.strength)]
        return explore(self.model, self.concept, erasures, how, self.progress, self.tries, self.detector, scorer=scorer)

    def _subject(self, *erasures: tuple[DeltaSet, float]) -> Subject:
        s = self.settings
        return Subject(self.model, erasures, self.progress, Budget(None), s.max_batch, s.guidance)

    @torch.no_grad()
    def _measure(self, file: Subjected, exploration: Exploration, scorer: Scorer) -> FileReport:
        self._tell(f"measuring what {file.name} keeps", 0, 1)
        with self._subject((file.deltas, file.strength)).opened() as subject:
            scorer = scorer.on(subject)
            everyday = fitting(self.model, [f"a {word}" for word in unrelated_words(self.concept)[::4]])
            kept = [*spread(self.concept.keep, MOST_KEPT), *known_prompts(scorer, everyday)]
            groups = {
                "kept prompts": kept_prompts(scorer, list(dict.fromkeys(kept))),
                "look-alikes": kept_prompts(scorer, self.look_alikes),
                "attributes": attributes(scorer),
            }
            groups = {name: found for name, found in groups.items() if found}
            yardstick = self._yardstick(scorer, exploration)
            drifted = drift(scorer, self.settings.seed)
        measured = FileReport(
            name=file.name,
            strength=file.strength,
            leak={name: counted(*counts) for name, counts in exploration.shares().items()},
            yardstick=yardstick,
            retention={name: share_of(k.recognised for k in found) for name, found in groups.items()},
            change={name: round(sum(k.change for k in found) / len(found), 5) for name, found in groups.items()},
            drift=tuple(drifted),
            sweep=self._sweep(file, scorer, exploration, groups.get("kept prompts", ())),
            found=exploration.leaking_words(20),
            unnamed=exploration.leaking_words(20, UNNAMED),
            looked=exploration.looked,
            about=_about(file, exploration),
            judged=exploration.judged,
            unsettled=exploration.unsettled,
            dismissed=exploration.dismissed,
            unchanged=exploration.unchanged,
        )
        other = of_another_concept(file.manifest, self.concept) if file.manifest is not None else ""
        return replace(measured, verdict=(*filter(None, [other]), *verdict(measured, self.concept)))

    def _yardstick(self, scorer: Scorer, exploration: Exploration) -> dict[str, Share]:
        """What the untouched model makes of the same prompts; of some of those that can be typed."""
        shares, of_thing = {}, _of_things(scorer)
        for origin in exploration.shares():
            texts = [point.text for point in exploration.points if point.origin == origin and point.word]
            some = texts[:: -(-len(texts) // YARDSTICK_PROMPTS) or 1]
            if some:
                scores = scorer([of_thing.get(text, Candidate(text, origin)) for text in some], erased=False)
                shares[origin] = share_of(score.leak > scorer.threshold for score in scores)
        return shares

    @torch.no_grad()
    def _sweep(
        self, file: Subjected, scorer: Scorer, exploration: Exploration, kept: Sequence[Kept]
    ) -> tuple[tuple[float, float, float | None], ...]:
        """Leak and retention over strengths, on the worst prompts found and on kept ones. The threshold of ``scorer``,
        which looks at the file's own strength, holds for all."""
        words = self.concept.named
        named = [worded(template, word) for word in words for template in with_room(self.model, TEMPLATES, words)]
        of_thing = _of_things(scorer)
        named += [point.text for point in exploration.points if point.text in of_thing]
        worst = [point.text for point in exploration.points if point.leaks and point.word]
        leaking = list(dict.fromkeys([*worst[:SWEEP_PROMPTS], *named]))[:SWEEP_PROMPTS]
        others = [one.text for one in kept[:SWEEP_PROMPTS]]
        curve: list[tuple[float, float, float | None]] = []
        for number, strength in enumerate(STRENGTHS):
            self._tell(f"measuring {file.name} at strength {strength:g}", number, len(STRENGTHS))
            with self._subject((file.deltas, strength)).opened() as subject:
                here = scorer.on(subject, scorer.threshold)
                asked = [of_thing.get(text, Candidate(text, "sweep")) for text in leaking]
                leaks = [s.leak > here.threshold for s in here(asked)]
                stays = [one.recognised for one in kept_prompts(here, others)]
            curve.append((strength, sum(leaks) / len(leaks), sum(stays) / len(stays) if stays else None))
        return tuple(curve)

    def _strips(self, files: Sequence[Subjected]) -> tuple[Strip, ...]:
        """Pictures of the concept, its look-alikes and kept prompts, with the same seeds."""
        decode = decoder(self.model)
        if not self.settings.pictures or decode is None:
            self.not_painted = (
                "No pictures were asked for." if decode else "The model has no autoencoder to paint with."
            )
            return ()
        words = self.concept.words[:2]
        (template,) = with_room(self.model, ["a photo of a {}"], words)
        wanted = [("erased", worded(template, word)) for word in words]
        kept, alike = (
            [prompt for prompt in prompts if guard.allows(self.concept, prompt)]
            for prompts in (self.concept.keep, self.look_alikes)
        )
        wanted += [("look-alike", prompt) for prompt in alike[:3]]
        wanted += [("kept", prompt) for prompt in kept if prompt not in self.look_alikes][:3]
        hidden = [] if self.settings.explicit else [one for one in wanted if self._is_hidden(*one)]
        self.not_painted = self._why_not_painted(hidden)
        wanted = [one for one in wanted if one not in hidden]
        self._tell("painting", 0, 1)
        prompts = [prompt for _, prompt in wanted]
        try:
            with raising_out_of_memory():
                columns = [self._paint(prompts, (), decode)]
                columns += [self._paint(prompts, [(file.deltas, file.strength)], decode) for file in files]
        except Cancelled:
            raise
        except ErasureError as error:  # all that was measured is worth more than the pictures
            self.not_painted = f"Not painted: {error}"
            return ()
        return tuple(
            Strip(
                prompt,
                kind,
                tuple(picture_uri(column[row], self._is_hidden(kind, prompt), STRIP_SIDE) for column in columns),
            )
            for row, (kind, prompt) in enumerate(wanted)
        )

    def _is_hidden(self, kind: str, prompt: str) -> bool:
        """Whether a strip is not made unless asked for, and blurred then: an explicit concept's, and that of any prompt
        that is explicit itself."""
        return (self.explicit and kind == "erased") or guard.is_explicit_prompt(prompt)

    def _why_not_painted(self, hidden: Sequence[tuple[str, str]]) -> str:
        """A sentence on prompts that are not painted, which names what they were taken for explicit by."""
        if not hidden:
            return ""
        words = guard.explicit_words(self.concept)
        by_concept = self.explicit and any(kind == "erased" for kind, _ in hidden)
        telling = words if by_concept and words else [text for _, text in hidden if guard.is_explicit_prompt(text)]
        named = ", ".join(f"“{word}”" for word in telling[:3])
        why = f"{named} is taken as sexual or violent" if telling else "the concept was said to be explicit"
        what = f"“{hidden[0][1]}”" + (f" and {len(hidden) - 1} more" if len(hidden) > 1 else "")
        return f"Not painted: {what}, as {why}. Explicit pictures are made only if asked for, and then blurred."

    def _paint(
        self, prompts: Sequence[str], erasures: Sequence[tuple[DeltaSet, float]], decode: Callable[..., Any]
    ) -> Any:
        s = self.settings
        with self.model.trainable(), applied(self.model, erasures), torch.no_grad():
            latents = [
                sample(self.model, [prompt], [s.seed], s.steps, s.guidance, progress=self.progress)
                for prompt in prompts
            ]
        # To decode, a host may move networks about: here nothing of the model is lent any more.
        pieces = [decode(latent) for latent in latents]
        return torch.cat(pieces) if pieces else pieces


def _of_things(scorer: Scorer) -> dict[str, Candidate]:
    """The prompts that say the concept of things, which are judged in their own way, wherever they are asked."""
    return {one.text: one for one in beside_others(scorer)}


def _about(file: Subjected, exploration: Exploration) -> dict[str, Any]:
    """What the file says of itself, and what the search was."""
    about: dict[str, Any] = {
        "layers": len(file.deltas),
        "bytes": file.size,
        "searched": ", ".join(
            [
                f"{exploration.seconds:.0f} s",
                f"{exploration.calls} predictions",
                f"{exploration.looked} prompts looked at as pictures",
                *filter(None, [exploration.coverage()]),
            ]
        ),
        "threshold": exploration.threshold,
    }
    manifest = file.manifest
    if manifest is not None:
        about |= {
            "method": manifest.method,
            "method status": manifest.method_status,
            "steps": manifest.steps_done,
            "base": f"{manifest.family}, fingerprint {manifest.base_fingerprint[:16]}",
            "settings": manifest.settings,
            "product version": manifest.product_version,
        }
    return about
