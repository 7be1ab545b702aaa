"""What a search or a measurement is about: the concept, and erasures that are matched to the loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from erasure_core.boundary import ExploreSettings
from erasure_core.boundary.report import ReportSettings, Subjected
from erasure_core.concept import Concept, apart_from
from erasure_core.erasure_file import StoredErasure, read_erasure
from erasure_core.errors import InvalidConcept, InvalidSettings
from erasure_core.library import SUFFIX
from erasure_core.model import LoadedModel

from . import places
from .wishes import Wish

NO_PICTURES = " No pictures were kept, because a safety profile is in force."
Settings = TypeVar("Settings", ExploreSettings, ReportSettings)


def allowed(settings: Settings) -> tuple[Settings, str]:
    """Settings as a safety profile in force lets them be: it is not on the model that is searched or measured, so that
    pictures of prompts that anyone writes would go around it.

    Returns:
        The settings, and a sentence for the closing line if they were changed.

    Raises:
        InvalidSettings: pictures are asked for, and the profile is pinned.
    """
    if not settings.pictures or not places.is_in_force():
        return settings, ""
    if places.locked_profile() is not None:
        raise InvalidSettings("No pictures are kept while a safety profile is pinned; ask for none.")
    return replace(settings, pictures=False), NO_PICTURES


def stored(wish: Wish) -> StoredErasure:
    """The file of a wish; raises as ``read_erasure``, and InvalidFile for a name that leads out of our folder."""
    return read_erasure(places.library().find(wish.file))


def concept_of(words: Sequence[str], keep: Sequence[str], files: Sequence[StoredErasure]) -> Concept:
    """The concept that was written down, or else the one of the first file that tells one.

    Raises:
        InvalidConcept: neither says one, or it cannot be used.
    """
    told = next((file.manifest.concept for file in files if file.manifest is not None), None)
    if words:
        # What is searched for is not asked to stay, whatever the file was told to keep.
        kept = told.keep if told is not None else ()
        return Concept(tuple(words), None, tuple(dict.fromkeys([*keep, *apart_from(words, kept)])))
    if told is None:
        raise InvalidConcept("There is nothing to search for; write the concept, or choose an erasure that tells its.")
    return replace(told, keep=tuple(dict.fromkeys([*keep, *told.keep])), groups=())


def subjected(wish: Wish, file: StoredErasure, model: LoadedModel) -> Subjected:
    """A file matched to the loaded model.

    Raises:
        WrongBase: it was made for another one.
    """
    deltas = file.bind(model, places.allows_other_bases())
    name = wish.name.removesuffix(SUFFIX)
    return Subjected(name, deltas, wish.unet, file.manifest, file.path.stat().st_size)
