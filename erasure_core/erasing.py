"""The two things everyone does with the core: erase a concept, and apply finished erasures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .concept import Concept, check_alternatives, check_words, without_contradictions
from .concept_pictures import ConceptPictures
from .delta import DeltaSet
from .effort import BALANCED, Effort, foreseen, plan, within_memory
from .erasure_file import Erasure
from .errors import InvalidConcept, InvalidSettings, raising_out_of_memory
from .fingerprint import fingerprint, sketch
from .guard import is_explicit
from .history import History, moved_away
from .layers import select
from .manifest import Manifest
from .memory import giving_back
from .methods import RECOMMENDED, Method, SolverSettings, TrainingSettings, find_method
from .model import LoadedModel, PromptModel, as_prompt_model, check_readable
from .naming import file_names
from .near_words import FRAMES_READ, neighbours_of_kept, with_everyday_keep, with_neighbours
from .progress import Noting, Progress, Report, Silent
from .stand_in import with_known_stand_in, with_likest
from .survey import KIN_WORDS, Survey, everyday_survey, likest_kept, survey
from .trainer import SAVE_EVERY, train
from .version import __version__
from .warm_start import check_closed_form_start

CANDIDATES = 12
"""Nearest words of the vocabulary of which one may take the concept's place, where the user named nothing: few, so that
an instant method stays one."""


def erase(
    model: LoadedModel,
    concept: Concept,
    method: str = RECOMMENDED,
    settings: SolverSettings | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    save_every: float = SAVE_EVERY,
    pictures: ConceptPictures | None = None,
    start: DeltaSet | None = None,
    effort: Effort | None = None,
) -> tuple[Erasure, History]:
    """Erase a concept from a loaded model. The model itself is not changed.

    Args:
        model: the model as its host has loaded it.
        concept: what to erase, what instead, what to keep. If nothing is to be kept, everyday prompts are.
        method: name of a registered method.
        settings: that method's settings; its defaults if not given.
        progress: reports and cancellation.
        checkpoint: file for the resumable state. If it exists, training goes on from it.
        save_every: seconds between two saves of that state.
        pictures: of the concept, for methods that read them; without, those make their own.
        start: a finished change that a training goes on from; a closed form needs none.
        effort: how much work a training takes, in the place of what the settings say; what it picks is a note in the
            history.

    Returns:
        The erasure, and the training's history (empty for a closed form).

    Raises:
        ErasureError: with one sentence that says what is wrong and what to do.
    """
    check_words(concept)
    check_alternatives(concept)
    concept = without_contradictions(concept)
    chosen, progress = find_method(method), Noting(progress or Silent())
    settings = settings or chosen.settings()
    if not isinstance(settings, chosen.settings):
        wrong = type(settings).__name__
        raise InvalidSettings(f"The method {chosen.name} takes {chosen.settings.__name__}, not {wrong}.")
    _check_layers(model, chosen, settings, start)
    check_readable(model, [*concept.words, *filter(None, concept.alternatives())])
    named = bool(concept.keep)
    with raising_out_of_memory(), giving_back():
        with model.trainable():
            concept = _complete(model, concept, chosen, settings, progress)
        if chosen.solve is not None:
            with model.trainable():
                solved = chosen.solve(model, concept, settings, progress)
            deltas, history = solved.to(model.device), History()
        else:
            assert isinstance(settings, TrainingSettings)
            goes_on = checkpoint is not None and checkpoint.exists()
            settings = _planned(model, settings, effort or Effort(), goes_on, progress)
            settings = foreseen(settings, model, goes_on, progress)
            (deltas, history), settings = within_memory(
                lambda fitting: train(
                    model, concept, chosen, fitting, progress, checkpoint, save_every, pictures, start
                ),
                settings,
                progress,
                checkpoint,
            )
    if not deltas.changed():
        raise InvalidConcept(
            "This changes nothing: the model reads concept and alternative as the same. Choose others."
        )
    if moved_away(history, chosen.erasing) and start is None and getattr(settings, "start", "nothing") == "nothing":
        news = "The training moved away from its goal: its loss grew; lower the learning rate"
        progress.update(Report("training", len(history.losses), len(history.losses), note=news))
    history.notes = progress.notes
    steps_done = len(history.losses)
    if not named and isinstance(settings, TrainingSettings) and not settings.keep_weight:
        concept = replace(concept, keep=(), neighbours=())  # nobody asked to keep them, and nothing kept them
    manifest = describe(model, deltas, concept, chosen.name, chosen.status, asdict(settings), steps_done)
    return Erasure(deltas, manifest), history


def _planned(
    model: LoadedModel, settings: TrainingSettings, effort: Effort, goes_on: bool, progress: Progress
) -> TrainingSettings:
    """The settings of an effort; a note says what it picked."""
    if effort.name == BALANCED:
        return settings
    # Only there the memory is what a training finds: hosts make room for the model on entering, and some copy it.
    with model.trainable():
        picked = plan(effort.name, settings, model, asked=effort.asked, goes_on=goes_on)
    progress.update(Report("training", 0, picked.settings.steps, note=picked.sentence))
    return picked.settings


def _complete(
    model: LoadedModel, concept: Concept, chosen: Method, settings: SolverSettings, progress: Progress
) -> Concept:
    """The concept as the method completes it or, where it does not, with an alternative and neighbours; and with kept
    prompts where the user named none."""
    if chosen.prepare is not None:
        completed = chosen.prepare(model, concept, settings, progress)
        if completed is not concept:
            return completed if completed.keep else with_everyday_keep(model, completed)
    reads = as_prompt_model(model)
    named = bool(concept.keep)
    if reads is not None and settings.replace and concept.unanswered():
        concept = _with_alternative(reads, concept, settings.seed, progress)
    concept = concept if concept.keep else with_everyday_keep(model, concept)
    frames = FRAMES_READ if named else 0  # everyday prompts say little about the words in them
    if reads is not None and settings.neighbours:
        concept = with_neighbours(model, concept, neighbours_of_kept(reads, concept, settings.neighbours, frames))
    return concept


def _with_alternative(model: PromptModel, concept: Concept, seed: int, progress: Progress) -> Concept:
    """The concept with what takes its place: the likest word of the prompts to keep or, where none is of its kind, of
    those that the model knows. Where the user named nothing to keep, words near the concept are kept as well."""
    look = Survey(candidates=CANDIDATES, looks=0, seed=seed)  # what is in doubt takes no place, whatever it paints
    if not concept.keep:
        concept, found = everyday_survey(model, concept, look, progress)
        concept = with_neighbours(model, concept, {one.word: "" for one in found if not (one.belongs or one.kept)})
        return with_known_stand_in(concept, found, is_explicit(concept))
    concept = with_likest(concept, likest_kept(model, concept, seed, progress))
    if concept.unanswered():
        found = survey(model, concept, replace(look, around_kept=0, kin=KIN_WORDS), progress, everyday=False)
        concept = with_known_stand_in(concept, found, is_explicit(concept))
    return concept


def _check_layers(model: LoadedModel, chosen: Method, settings: SolverSettings, start: DeltaSet | None) -> None:
    """Refuse before the work what would be refused in the middle of it, or could not be written after it."""
    _check_names(model, settings)
    if chosen.check is not None:
        chosen.check(model, settings)
    if start is None and isinstance(settings, TrainingSettings) and settings.start == "closed_form":
        check_closed_form_start(select(model.layers(), settings.layers))


def _check_names(model: LoadedModel, settings: SolverSettings) -> None:
    """Refuse before the work what could not be written after it."""
    layers = model.layers()
    is_dense = isinstance(settings, TrainingSettings) and settings.rank == 0
    known = file_names(layers, model.family, is_dense)
    nameless = [name for name in select(layers, settings.layers) if name not in known]
    if nameless:
        raise InvalidSettings(
            f"The layer {nameless[0]} of this model has no name in files that hosts load; choose other layers."
        )


def describe(
    model: LoadedModel,
    deltas: DeltaSet,
    concept: Concept,
    method: str,
    status: str,
    settings: dict[str, Any],
    steps_done: int = 0,
) -> Manifest:
    """The manifest of a change of a loaded model; arguments as in ``Manifest``."""
    changed = deltas.changed()
    return Manifest(
        words=concept.words,
        alternative=concept.alternative,
        keep=concept.kept_prompts[1:],
        instead=concept.instead,
        groups=concept.groups,
        found=concept.found,
        method=method,
        method_status=status,
        settings=settings,
        steps_done=steps_done,
        family=model.family,
        base_fingerprint=fingerprint(model, changed),
        base_sketch=sketch(model, changed),
        prediction=model.schedule.prediction,
        product_version=__version__,
    )


@contextmanager
def applied(model: LoadedModel, erasures: Sequence[tuple[DeltaSet, float]]) -> Iterator[None]:
    """Inside, the model paints with the erasures at their strengths, added up; on leaving it is as it was."""
    layers = model.layers()
    with ExitStack() as stack:
        for deltas, strength in erasures:
            stack.enter_context(DeltaSet(deltas.deltas, strength).attached(layers))
        yield
