"""The model's own words for a concept, as part of a method: looked for before the training, erased with those named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..guard import is_explicit
from ..model import as_prompt_model, fitting
from ..near_words import with_neighbours
from ..stand_in import with_known_stand_in, with_likest
from ..survey import Survey, everyday_survey, expanded, kept_parts, survey
from .registry import TrainingSettings, option

if TYPE_CHECKING:
    from ..concept import Concept
    from ..model import LoadedModel
    from ..progress import Progress


@dataclass(frozen=True)
class VocabularySettings(TrainingSettings):
    """Settings of methods that ask the model for its words before they train."""

    search: bool = option(
        True, "also erase the words that the model reads as the concept, and keep those near it", basic=True
    )
    candidates: int = option(40, "nearest words of the vocabulary that are judged", low=1, high=1000)
    alike: float = option(0.55, "least likeness of the guidance for a word that belongs", low=-1.0, high=1.0)
    most_words: int = option(12, "most words that are found and erased", low=0, high=100)
    most_neighbours: int = option(60, "most words near the concept and near what is kept that are kept too", 0, 1000)


def with_own_words(model: LoadedModel, concept: Concept, settings: VocabularySettings, progress: Progress) -> Concept:
    """The concept with the words and neighbours that the model itself tells, and an alternative of the prompts to keep.

    Where the user names none, everyday prompts are kept, but none with a word that the model reads as the concept, and
    any word may become the alternative that the model knows and reads otherwise. Without any the words still paint the
    concept in four of ten pictures (measured on ``ball``).
    """
    reads = as_prompt_model(model)
    if not settings.search or reads is None:
        return concept
    named = bool(concept.keep)
    look = Survey(settings.candidates, alike=settings.alike, around_kept=settings.neighbours, seed=settings.seed)
    if named:
        found = survey(reads, concept, look, progress)
    else:
        concept, found = everyday_survey(reads, concept, look, progress)
    if settings.replace:
        # Before the words that were found: "pumpkin" among them does not make a thing of "orange".
        explicit = is_explicit(concept)
        concept = with_likest(concept, found) if named else concept
        concept = with_known_stand_in(concept, found, explicit)
    grown = expanded(concept, found, settings.most_words)
    # What is as alike as the concept's own words and yet in doubt is not kept either: it may paint just that.
    near = [one for one in found if not (one.belongs or one.kept) and (one.near or one.likeness < settings.alike)]
    near.sort(key=lambda one: not one.near)  # those of what is kept first: they say what is meant by it
    grown = with_neighbours(model, grown, {one.word: one.near for one in near[: settings.most_neighbours]})
    return replace(grown, neighbours=(*grown.neighbours, *fitting(model, kept_parts(concept))))
