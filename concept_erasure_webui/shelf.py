"""What can be done with finished erasures: check, rename, delete, import, export, and make safety profiles of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import hypot
from pathlib import Path
from typing import Any

import torch
from modules import shared

from erasure_core.combining import LOSS, converted, reshaped
from erasure_core.concept import Concept
from erasure_core.delta import LowRankDelta
from erasure_core.erasing import describe
from erasure_core.erasure_file import Erasure, StoredErasure, read_erasure, write_erasure
from erasure_core.errors import ErasureError, InvalidConcept, InvalidFile, InvalidSettings, OutputError
from erasure_core.foreign import CONVERTED, looks_foreign, missing_of, not_kept, read_foreign
from erasure_core.hosts.webui import WebuiModel
from erasure_core.library import SUFFIX, safe_stem
from erasure_core.making import history_path
from erasure_core.profile import make_profile, write_profile
from erasure_core.safe_files import copy_file

from . import places
from .wishes import NONE
from .working import loaded_model


def chosen(name: str | None) -> Path:
    """The file behind a name of a list.

    Raises:
        InvalidFile: nothing is chosen, or there is no such file.
    """
    if not name or name == NONE:
        raise InvalidFile("Choose an erasure.")
    return places.library().find(name.removesuffix(SUFFIX) + SUFFIX)


def _guarded(name: str | None) -> Path:
    """The file behind a name that is about to go away.

    Raises:
        InvalidSettings: the safety profile in force names it.
        ErasureError: as ``chosen``, or the profile cannot be read.
    """
    path, profile = chosen(name), places.profile()
    named = [places.library().folders[0] / entry.file for entry in profile.entries] if profile is not None else []
    if path.resolve() in [one.resolve() for one in named]:
        raise InvalidSettings(
            f"The safety profile {places.profile_name()!r} is in force and names {path.stem}; without it no picture "
            "would be made. Take the profile out of force first."
        )
    return path


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Raises OutputError where the system does not let the file be renamed or deleted."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be changed ({error.strerror}); check the rights of its folder.") from error


def rename(name: str | None, new: str) -> str:
    """Give a file another name; returns a message.

    Raises:
        ErasureError: nothing chosen, a name that is taken, the safety profile in force names the file, or others use
            this web UI.
    """
    places.refuse_if_open_to_others("Renaming")
    path = _guarded(name)
    if not new.strip():
        raise InvalidSettings("Write the new name.")
    target = path.with_name(safe_stem(new.removesuffix(SUFFIX)) + SUFFIX)
    if target.exists():
        raise OutputError(f"There is already an erasure {target.stem!r}; choose another name.")
    with _changing(path):
        path.rename(target)
        if history_path(path).exists():
            history_path(path).replace(history_path(target))
    return f"{path.stem} is now {target.stem}."


def delete(name: str | None, is_sure: bool) -> str:
    """Delete a file; returns a message.

    Raises:
        ErasureError: nothing chosen, not ticked, the safety profile in force names the file, or others use this web UI.
    """
    places.refuse_if_open_to_others("Deleting")
    path = _guarded(name)
    if not is_sure:
        raise InvalidSettings(f"Tick the box to delete {path.stem!r} for good.")
    with _changing(path):
        path.unlink()
        history_path(path).unlink(missing_ok=True)
    return f"{path.stem} was deleted."


def check(name: str | None) -> str:
    """Say whether an erasure belongs to the loaded checkpoint, or which of all do where none is chosen.

    Returns:
        A message.

    Raises:
        ErasureError: no model is loaded; the chosen file is damaged or was made for another model.
    """
    model, library = loaded_model(), places.library()
    if name and name != NONE:
        path = chosen(name)
        if _fits(path, model).manifest is None:
            return f"{path.stem} has layers as {model.title} has them, but does not say which model it was made on."
        return f"{path.stem} fits {model.title}."
    fitting, others = [], []
    for file in library.names():
        try:
            _fits(library.find(file), model)
            fitting.append(file.removesuffix(SUFFIX))
        except ErasureError:
            others.append(file.removesuffix(SUFFIX))
    told = [f"{what}: {', '.join(files)}." for what, files in (("Fit", fitting), ("Do not fit", others)) if files]
    return f"{model.title}. {' '.join(told) or 'There are no erasures yet.'}"


def _fits(path: Path, model: WebuiModel) -> StoredErasure:
    """The file, if it belongs to the model; raises as ``check``."""
    stored = read_erasure(path)
    stored.bind(model, places.allows_other_bases(), torch.device("cpu"))
    return stored


def import_file(source: Path | None, words: str) -> str:
    """Take in a file that the browser sent: an erasure, a LoRA, or weights that others publish (ESD, UCE, …).

    Returns:
        A message.

    Raises:
        ErasureError: unreadable, unsafe, or made for another base; others use this web UI, or a profile is pinned.
    """
    places.refuse_if_open_to_others("Importing")
    if places.locked_profile() is not None:
        raise ErasureError(
            "Importing is switched off while a safety profile is pinned on the command line: a file could take back "
            "what the profile takes away. Put files into the folder on the machine itself."
        )
    if source is None:
        raise InvalidFile("Choose a file.")
    if source.suffix != SUFFIX:
        raise InvalidFile(f"{source.name} is not a {SUFFIX} file; only those are read.")
    library = places.library()
    target = library.free_path(source.stem)
    model = loaded_model()
    stored = None if looks_foreign(source) else read_erasure(source)
    if stored is not None and stored.manifest is not None:
        stored.bind(model)
        copy_file(source, target)
        return f"{target.stem} was imported."
    said = tuple(word.strip() for word in words.split(",") if word.strip())
    if not said:
        raise InvalidConcept(f"{source.name} does not say what it erases; write it, with commas between the words.")
    origin: dict[str, Any] = {"file": source.name}
    if stored is None:
        found = read_foreign(source, model, model.other_parameters())
        origin = found.source(source)
        deltas, error = reshaped(found.deltas, "low-rank", noise=found.noise)
        origin[LOSS] = error
    else:
        deltas = stored.bind(model)
    manifest = describe(model, deltas, Concept(said), *CONVERTED, origin)
    write_erasure(target, Erasure(deltas, manifest), model)
    told = f"{target.stem} was imported; relative error of the conversion {origin.get(LOSS, 0.0):.1e}."
    missing = missing_of(origin)
    unread = f"Not read: {missing['unread']} tensors that this model does not have." if missing["unread"] else ""
    return " ".join(filter(None, [told, not_kept(missing), unread]))


def export_lora(name: str | None) -> str:
    """Put a file where the host looks for LoRAs, so that ``<lora:name:1>`` loads it; returns a message.

    A LoRA does not fail closed: with a misspelt tag the host paints the concept. And with a negative strength it takes
    an erasure back, so that nobody makes one while others' pictures are protected.

    Raises:
        ErasureError: nothing chosen, a name that is taken, others use this web UI, or a profile is pinned.
    """
    places.refuse_if_open_to_others("Exporting")
    if places.locked_profile() is not None:
        raise ErasureError(
            "Exporting is switched off while a safety profile is pinned on the command line: as a LoRA with a negative "
            "strength the file would bring the concept back."
        )
    path = chosen(name)
    folder = Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(places.folder()).parent / "Lora")
    target = folder / path.name
    if target.exists():
        raise OutputError(f"There is already a LoRA {target.stem!r}; rename the erasure first.")
    stored = read_erasure(path)
    if all(isinstance(delta, LowRankDelta) for delta in stored.changes.values()):
        copy_file(path, target)
        told = "the file as it is"
    else:
        model = loaded_model()
        made = converted(model, stored, "low-rank", allow_other_base=places.allows_other_bases())
        written = write_erasure(target, made, model)
        told = f"relative error of the conversion {hypot(written.settings[LOSS], written.storage_error):.1e}"
    return f"{target.stem} is now a LoRA, {told}: <lora:{target.stem}:1>."


def save_profile(name: str, files: Sequence[str], strength: float) -> str:
    """Write a safety profile of these files as they are now; returns a message.

    Raises:
        ErasureError: the name means that there is none, a file is missing, or others use this web UI.
    """
    places.refuse_if_open_to_others("Making safety profiles")
    if safe_stem(name) == places.NO_PROFILE:
        raise InvalidSettings(f"{name!r} means in the settings that no profile is in force; choose another name.")
    wanted = [(file.removesuffix(SUFFIX) + SUFFIX, float(strength), float(strength)) for file in files]
    path = write_profile(places.folder(), make_profile(name, places.library(), wanted))
    short = path.name.removesuffix(".profile.json")
    return f"The profile {short} was written. Put it in force under Settings, Concept Erasure: refresh the list there."
