"""The loaded model of this web UI with what is on it: binds wishes to it and keeps what was bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules import shared

from erasure_core.erasure_file import read_erasure
from erasure_core.errors import ErasureError
from erasure_core.hosts.webui import WebuiModel
from erasure_core.hosts.webui_patching import ForgePatcher, SwapPatcher, patcher_for
from erasure_core.hosts.webui_slots import Applied, Products
from erasure_core.profile import ProfileFailed, SafetyProfile, bind_profile, sha256_of

from . import places
from .wishes import Wish

Patcher = SwapPatcher | ForgePatcher
ATTRIBUTE = "_concept_erasure_held"
KEPT = 16
"""Bound erasures that are kept in memory."""
UNKNOWN = "unknown"
"""In the place of ``Session.encoded``: whatever comes next is encoded anew."""


def checkpoint_of(sd_model: Any) -> str:
    """Which checkpoint a model object holds now."""
    info = getattr(sd_model, "sd_checkpoint_info", None)
    return str(getattr(info, "filename", getattr(sd_model, "sd_model_checkpoint", "")))


@dataclass
class Held:
    """What belongs to one loaded model.

    Args:
        patcher: puts erasures on it.
        checkpoint: the file that its weights came from.
        bound: erasures and profiles matched to it.
        mark: tells it from every other model, and from other weights in the same one, without keeping it in memory.
    """

    patcher: Patcher
    checkpoint: str
    bound: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    mark: object = field(default_factory=object)

    def keep(self, key: tuple[Any, ...], value: Any) -> Any:
        while len(self.bound) >= KEPT:
            self.bound.pop(next(iter(self.bound)))
        self.bound[key] = value
        return value


MIN_KEPT = 0.5
"""Least share of a safety profile's change that other erasures may leave of it."""


def check_kept(profile: Sequence[Applied], others: Sequence[Applied], products: Products) -> None:
    """See that a profile is not undone by what is asked for beside it, as by its own files negated.

    Raises:
        ProfileFailed: it is.
    """
    kept = products.kept(profile, others) if profile and others else 1.0
    if not kept >= MIN_KEPT:
        names = ", ".join(one.label for one in others)
        raise ProfileFailed(
            f"The erasures asked for ({names}) would leave {max(0.0, kept):.0%} of what the safety profile in force "
            "changes; ask for others, or for less of them."
        )


class Session:
    """What is known of the loaded models; their patchers are kept on the models themselves, because a host with several
    models in memory changes between them without telling anybody."""

    def __init__(self) -> None:
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}
        self.products = Products()
        self.encoded = ""
        """Which erasures of text encoders are in the encoded prompts that the host keeps, whatever is on the model."""

    def held(self) -> Held:
        """What belongs to the model that is loaded now.

        Raises:
            ModelError: no model is loaded or it cannot be patched.
        """
        sd_model = shared.sd_model
        found = getattr(sd_model, "__dict__", {}).get(ATTRIBUTE)
        if found is not None:
            model = found.patcher.model
            if found.checkpoint == checkpoint_of(sd_model) and model.unet is model.host.unet_now():
                return found
            found.patcher.forget()
        fresh = Held(patcher_for(WebuiModel(sd_model)), checkpoint_of(sd_model))
        sd_model.__dict__[ATTRIBUTE] = fresh
        return fresh

    def touched(self) -> bool:
        """Whether something was put on the model that is loaded now, since it was loaded."""
        return ATTRIBUTE in getattr(shared.sd_model, "__dict__", {})

    def patcher(self) -> Patcher:
        """The patcher of the model that is loaded now; raises as ``held``."""
        return self.held().patcher

    def model_was_loaded(self, sd_model: Any) -> None:
        """Weights were read into this model: what was put on it is gone, and kept originals are of the old ones."""
        found = getattr(sd_model, "__dict__", {}).pop(ATTRIBUTE, None)
        if found is not None:
            found.patcher.forget()

    def digest(self, path: Path) -> str:
        """Hash of a file's content, read again only when the file has changed."""
        try:
            stat = path.stat()
        except OSError as error:
            raise ErasureError(f"{path} cannot be read ({error.strerror}).") from error
        mark = (stat.st_mtime_ns, stat.st_size)
        if path not in self._digests or self._digests[path][0] != mark:
            self._digests[path] = (mark, sha256_of(path))
        return self._digests[path][1]

    def bind(self, wishes: Sequence[Wish]) -> list[Applied]:
        """Match wishes to the loaded model, all or none.

        Raises:
            ErasureError: a file is missing, damaged, or made for another base.
        """
        return [self._bind(self.held(), wish) for wish in wishes]

    def _bind(self, held: Held, wish: Wish) -> Applied:
        path = places.library().find(wish.file)
        digest = self.digest(path)
        other = places.allows_other_bases()
        key = ("file", digest, other)
        deltas = held.bound.get(key)
        if deltas is None:
            deltas = held.keep(key, read_erasure(path).bind(held.patcher.view, allow_other_base=other))
        return Applied(wish.name, digest, deltas, wish.unet, wish.text)

    def bind_profile(self, profile: SafetyProfile) -> list[Applied]:
        """Match a profile to the loaded model.

        Raises:
            ProfileFailed: it cannot be applied whole.
        """
        held = self.held()
        try:
            files = {entry.file: self.digest(places.library().find(entry.file)) for entry in profile.entries}
        except ErasureError as error:
            raise ProfileFailed(f"The safety profile {profile.name!r} cannot be applied: {error}") from error
        key = ("profile", profile.digest(), *files.values())
        bound: list[Applied] | None = held.bound.get(key)
        if bound is None:
            entries = bind_profile(profile, places.library(), held.patcher.view)
            bound = [
                Applied(
                    one.entry.file, files[one.entry.file], one.deltas, one.entry.strength_unet, one.entry.strength_text
                )
                for one in entries
            ]
            held.keep(key, bound)
        return bound

    def take_off(self) -> None:
        """Leave the loaded model as the host made it."""
        found = getattr(shared.sd_model, "__dict__", {}).pop(ATTRIBUTE, None)
        if found is not None:
            found.patcher.clear()


SESSION = Session()
