"""Safety profiles: a named list of erasures with strengths, as a file that a studio can share.

A profile fails closed: what cannot be applied whole is refused, so that no picture is made without it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .delta import DeltaSet
from .erasure_file import read_erasure
from .errors import ErasureError, InvalidFile, InvalidSettings
from .layers import is_text
from .library import Library, confined, read_manifest, safe_stem
from .model import LoadedModel
from .safe_files import check_regular, write_bytes

FORMAT_VERSION = 1
SUFFIX = ".profile.json"
MAX_BYTES = 2**20
MAX_ENTRIES = 256
MAX_STRENGTH = 4.0


def wrong_strength(name: str, strengths: Sequence[float]) -> str:
    """A sentence on the first of an erasure's strengths that is out of range or no number; empty where none is."""
    wrong = [one for one in strengths if not math.isfinite(one) or not 0 <= one <= MAX_STRENGTH]
    return f"The strength of {name} is {wrong[0]}; allowed is 0 to {MAX_STRENGTH:g}." if wrong else ""


class ProfileFailed(ErasureError):
    """A safety profile is not whole or cannot be applied; no picture may be made."""


@dataclass(frozen=True)
class ProfileEntry:
    """One erasure of a profile.

    Args:
        file: name in the library.
        strength_unet: factor on the changes of the diffusion network, 0 to 4.
        strength_text: factor on the changes of the text encoders, 0 to 4.
        sha256: of the whole file, so that nobody swaps it for another; empty to accept any file of the name.

    Raises:
        ProfileFailed: a name that leads elsewhere, or strengths that are out of range or all zero.
    """

    file: str
    strength_unet: float = 1.0
    strength_text: float = 1.0
    sha256: str = ""

    def __post_init__(self) -> None:
        try:
            confined(self.file)
        except InvalidFile as error:
            raise ProfileFailed(str(error)) from error
        if told := wrong_strength(self.file, (self.strength_unet, self.strength_text)):
            raise ProfileFailed(told)
        if not self.strength_unet and not self.strength_text:
            raise ProfileFailed(f"{self.file} has strength 0 and would do nothing; remove it from the profile.")


@dataclass(frozen=True)
class SafetyProfile:
    """A named list of erasures that is applied whole or not at all.

    Raises:
        ProfileFailed: no name, no entry, or too many.
    """

    name: str
    entries: tuple[ProfileEntry, ...]

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable() or len(self.name) > 100:
            raise ProfileFailed("A safety profile needs a name of 1 to 100 printable characters.")
        if not 1 <= len(self.entries) <= MAX_ENTRIES:
            raise ProfileFailed(
                f"The profile {self.name!r} lists {len(self.entries)} erasures; it must hold 1 to {MAX_ENTRIES}."
            )

    def digest(self) -> str:
        """A hash of all that the profile asks for, 16 hexadecimal digits; put beside pictures made with it."""
        return hashlib.sha256(_to_json(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BoundEntry:
    """An entry matched to a loaded model, ready to be applied by the host's own means.

    Args:
        entry: what the profile asks for.
        deltas: the changes by canonical layer name.
    """

    entry: ProfileEntry
    deltas: DeltaSet

    def strength(self, layer: str) -> float:
        return self.entry.strength_text if is_text(layer) else self.entry.strength_unet


def sha256_of(path: Path) -> str:
    """Hash of a file.

    Raises:
        ProfileFailed: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        check_regular(path)
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except InvalidFile as error:
        raise ProfileFailed(f"The profile cannot be applied: {error}") from error
    except OSError as error:
        raise ProfileFailed(f"{path} cannot be read ({error.strerror}), so the profile cannot be applied.") from error
    return digest.hexdigest()


def make_profile(name: str, library: Library, wanted: Sequence[tuple[str, float, float]]) -> SafetyProfile:
    """A profile of files as they are now, each pinned to its content.

    Args:
        name: for people.
        library: where the files are.
        wanted: file name, strength for the diffusion network, strength for the text encoders.

    Raises:
        InvalidFile: a file is missing.
        ProfileFailed: a strength is out of range, or a file cannot be read.
    """
    return SafetyProfile(
        name, tuple(ProfileEntry(file, unet, text, sha256_of(library.find(file))) for file, unet, text in wanted)
    )


def profile_path(folder: Path, name: str) -> Path:
    """Where a profile is kept: one that lies in the folder under its own name, whoever put it there, or where
    ``write_profile`` would put it."""
    return folder / f"{name if name in profile_names(folder) else safe_stem(name)}{SUFFIX}"


def profile_names(folder: Path) -> list[str]:
    """The profiles of a folder, by file name without suffix."""
    return sorted(p.name.removesuffix(SUFFIX) for p in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def refuse_if_pinned(folder: Path, library: Library, path: Path) -> None:
    """Refuse to write figures into a file that a profile holds as it is: the profile would not be applied any more.

    Args:
        folder: of the profiles.
        library: where the files of profiles are.
        path: the file that is about to be written to.

    Raises:
        InvalidSettings: a profile pins the file.
    """
    pinned_by = _profiles_that_pin(folder, library, path)
    if pinned_by:
        raise InvalidSettings(
            f"The safety profile {pinned_by[0]!r} pins {path.name} as it is, so it could not be applied any more with "
            "figures in the file. Remove the profile first and save it again afterwards, or do not write the figures."
        )


def _profiles_that_pin(folder: Path, library: Library, path: Path) -> list[str]:
    """The profiles of a folder, by file name without suffix."""
    found = []
    for name in profile_names(folder):
        try:
            entries = read_profile(folder / f"{name}{SUFFIX}").entries
        except ProfileFailed:
            continue  # it is not applied as it is, so there is nothing to break
        places = [(below / entry.file).resolve() for entry in entries if entry.sha256 for below in library.folders]
        found += [name] if path.resolve() in places else []
    return found


def _to_json(profile: SafetyProfile) -> str:
    content = {"format_version": FORMAT_VERSION, "name": profile.name}
    return json.dumps(content | {"entries": [asdict(entry) for entry in profile.entries]}, indent=1, sort_keys=True)


def write_profile(folder: Path, profile: SafetyProfile, overwrite: bool = False) -> Path:
    """Write a profile for others to use; returns its path.

    Raises:
        ProfileFailed: there is another profile of that name and ``overwrite`` is not set.
        OutputError: the folder cannot be written.
    """
    path = folder / f"{safe_stem(profile.name)}{SUFFIX}"
    if path.exists() and not overwrite and read_profile(path) != profile:
        raise ProfileFailed(f"There is another profile {path.name}; choose another name or delete that file.")
    write_bytes(path, _to_json(profile).encode())
    return path


def read_profile(path: Path) -> SafetyProfile:
    """Read a profile that anyone may have written.

    Raises:
        ProfileFailed: missing, not JSON, of a newer format, or with wrong entries.
    """
    try:
        if check_regular(path) > MAX_BYTES:
            raise ProfileFailed(f"{path} is larger than {MAX_BYTES} bytes; it is not a safety profile.")
        raw = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors mark a text's beginning
        if raw["format_version"] > FORMAT_VERSION:
            raise ProfileFailed(f"{path} was written by a newer version of this software; update it.")
        entries = tuple(_entry(item) for item in raw["entries"])
        return SafetyProfile(_text(raw["name"]), entries)
    except InvalidFile as error:
        raise ProfileFailed(f"The safety profile is no file that can be read: {error}") from error
    except OSError as error:
        raise ProfileFailed(f"The safety profile {path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ProfileFailed(f"The safety profile {path} is damaged ({error!r}); get a fresh copy.") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _entry(raw: dict[str, Any]) -> ProfileEntry:
    unet, text = raw.get("strength_unet", 1.0), raw.get("strength_text", 1.0)
    if any(isinstance(strength, bool) or not isinstance(strength, (int, float)) for strength in (unet, text)):
        raise TypeError(f"the strength of {raw['file']!r} is not a number")
    return ProfileEntry(_text(raw["file"]), float(unet), float(text), _text(raw.get("sha256", "")))


def bind_profile(profile: SafetyProfile, library: Library, model: LoadedModel) -> list[BoundEntry]:
    """Match every erasure of a profile that is for a model's kind to that model, all or none.

    Raises:
        ProfileFailed: none is for its kind; any file of the profile is missing, damaged or exchanged; or one that is
            for its kind was made for another base, or would change nothing.
    """
    return bind_entries(profile, entries_for(profile, library, model), library, model)


def entries_for(profile: SafetyProfile, library: Library, model: LoadedModel) -> list[ProfileEntry]:
    """What a profile asks for on a model of this kind (SD1.x, SD2.x, SDXL, …): a profile may protect several. Files
    that do not say what they are for, are for all. Those left out are looked at too: they must be there, as they were.

    Raises:
        ProfileFailed: nothing is for this kind, or a file is missing, damaged or exchanged.
    """
    kept = [entry for entry in profile.entries if _is_for(profile, entry, library, model.family)]
    if not kept:
        raise ProfileFailed(
            f"The safety profile {profile.name!r} cannot be applied: none of its erasures is for this kind of model "
            f"({model.family}); add one to the profile, or load a model of the kind that it is for."
        )
    return kept


def _is_for(profile: SafetyProfile, entry: ProfileEntry, library: Library, family: str) -> bool:
    try:
        path = library.find(entry.file)
        manifest = read_manifest(path)
        if manifest is None or manifest.family == family:
            return True  # its content is looked at when it is bound
        check_content(entry, path)
        return False
    except ErasureError as error:
        raise ProfileFailed(f"The safety profile {profile.name!r} cannot be applied: {error}") from error


def bind_entries(
    profile: SafetyProfile, entries: Sequence[ProfileEntry], library: Library, model: LoadedModel
) -> list[BoundEntry]:
    """Match some entries of a profile to a model, all or none; raises as ``bind_profile``."""
    return [_bind(profile, entry, library, model) for entry in entries]


def check_content(entry: ProfileEntry, path: Path) -> None:
    """Raises InvalidFile for a file that is not the one that a profile was made with; ProfileFailed if it cannot be
    read."""
    if entry.sha256 and sha256_of(path) != entry.sha256:
        raise InvalidFile(f"{path} is not the file that the profile was made with.")


def _bind(profile: SafetyProfile, entry: ProfileEntry, library: Library, model: LoadedModel) -> BoundEntry:
    try:
        path = library.find(entry.file)
        check_content(entry, path)
        bound = BoundEntry(entry, read_erasure(path).bind(model))
    except ErasureError as error:
        raise ProfileFailed(f"The safety profile {profile.name!r} cannot be applied: {error}") from error
    if not any(bound.strength(name) for name in bound.deltas.changed()):
        raise ProfileFailed(
            f"The safety profile {profile.name!r} cannot be applied: {entry.file} would change nothing at its strength."
        )
    return bound
