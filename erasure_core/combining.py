"""New erasures from finished ones: several in one, or one in another form, each with a manifest that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .algebra import dense, low_rank, merged
from .concept import Concept, apart_from
from .delta import Delta, DeltaSet, LowRankDelta
from .erasing import describe
from .erasure_file import NOTHING_LEFT, Erasure, StoredErasure
from .errors import InvalidSettings
from .manifest import Manifest
from .model import LoadedModel
from .naming import file_names
from .progress import Progress, reporting_each

CPU = torch.device("cpu")
"""Where sums and conversions are made: a full-size change of a whole network is twice as large as that network, which
may fill its device."""
UNKNOWN = "unknown"
"""What a plain LoRA without a manifest is said to erase."""
LOSS = "conversion_error"
"""Under this name a manifest's settings hold the relative error of a conversion."""
SMALL_LOSS = 1e-3
"""Up to this error, which is about that of half precision, a conversion keeps the figures that were measured."""
CANCELLED = 1e-5
"""Up to this share of its parts a sum is rounding: the factors of files have half precision, sums are in single."""
MERGED = "made from finished erasures; figures of the parts do not carry over"


@dataclass(frozen=True)
class Part:
    """One erasure of a merge.

    Args:
        stored: the erasure.
        unet, text: factors on the changes of the diffusion network and of the text encoders.
    """

    stored: StoredErasure
    unet: float = 1.0
    text: float = 1.0


def all_words(manifests: Sequence[Manifest]) -> Concept:
    """What several erasures erase and keep together."""
    words = tuple(word for manifest in manifests for word in manifest.words) or (UNKNOWN,)
    keep = tuple(prompt for manifest in manifests for prompt in manifest.keep)
    # One part's kept prompt may be another part's concept.
    kept = apart_from(words, keep)
    erased = {word.casefold() for word in words}
    instead: dict[str, str] = {}
    for manifest in manifests:
        own = dict(manifest.instead)
        for word in manifest.words:
            other = own.get(word, manifest.alternative)
            if other is not None and other.casefold() not in erased:
                instead.setdefault(word, other)
    groups = tuple(group for manifest in manifests for group in (manifest.groups or (manifest.words,)))
    named = {word for manifest in manifests for word in manifest.words if word not in manifest.found}
    found = tuple(word for word in words if word not in named)
    return Concept(words, None, kept, tuple(instead.items()), groups=groups, found=found)


def merge(
    model: LoadedModel, parts: Sequence[Part], allow_other_base: bool = False, progress: Progress | None = None
) -> Erasure:
    """The sum of erasures of one base at their strengths, exact; it lies in main memory.

    Raises:
        Cancelled: the user stopped.
        InvalidSettings: nothing but rounding is left of them.
        WrongBase: a part was made for another model.
    """
    reading = reporting_each(parts, "matching to the model", progress)
    bound = [(_weighted(part, part.stored.bind(model, allow_other_base, CPU)), 1.0) for part in reading]
    deltas = merged(bound, progress)
    if _size(deltas) <= CANCELLED * sum(_size(part) for part, _ in bound):
        raise InvalidSettings(NOTHING_LEFT)
    origin = [_origin(part) for part in parts]
    known = [part.stored.manifest for part in parts if part.stored.manifest is not None]
    settings: dict[str, Any] = {"parts": origin}
    if allow_other_base:  # the result names this model as its base, so it must say that its parts may not
        settings["other_base_allowed"] = True
    manifest = describe(model, deltas, all_words(known), "merge", MERGED, settings)
    return Erasure(deltas, manifest)


def _size(deltas: DeltaSet) -> float:
    return float(sum(delta.norm() ** 2 for delta in deltas.deltas.values()) ** 0.5)


def _origin(part: Part) -> dict[str, Any]:
    """What a merge's manifest says of a part; what a conversion has lost is lost in the sum as well."""
    said: dict[str, Any] = {"file": part.stored.path.name, "strength": part.unet, "strength_text": part.text}
    lost = part.stored.manifest.settings.get(LOSS) if part.stored.manifest is not None else None
    return said | ({LOSS: lost} if isinstance(lost, float) else {})


def _weighted(part: Part, deltas: DeltaSet) -> DeltaSet:
    """A part's changes at its strengths; a sum with one summand scales."""
    unet, text = deltas.apart()
    return merged([(text, part.text), (unet, part.unet)])


def reshaped(
    deltas: DeltaSet,
    form: str,
    rank: int = 0,
    noise: Mapping[str, float] = MappingProxyType({}),
    progress: Progress | None = None,
) -> tuple[DeltaSet, float]:
    """A change as ``low-rank`` or ``dense``, with the relative error of the conversion.

    Args:
        deltas: the change.
        form: ``low-rank`` or ``dense``.
        rank: largest rank; 0 takes the least that is exact.
        noise, progress: as of ``low_rank``.
    """
    if form == "dense":
        return dense(deltas), 0.0
    if rank or not all(isinstance(delta, LowRankDelta) for delta in deltas.deltas.values()):
        return low_rank(deltas, rank, noise, progress)
    return deltas, 0.0


def stored_form(model: LoadedModel, deltas: DeltaSet, manifest: Manifest | None, path: Path) -> StoredErasure:
    """An erasure in memory as if it had been read from a file; its changes lie in the memory of the CPU."""
    is_dense = not all(isinstance(delta, LowRankDelta) for delta in deltas.deltas.values())
    names = file_names(model.layers(), model.family, is_dense)
    whole = dense(deltas).deltas if is_dense else deltas.deltas
    changes: dict[str, Delta] = {names[name]: delta.to("cpu") for name, delta in whole.items()}
    return StoredErasure(changes, manifest, path)


def converted(
    model: LoadedModel,
    stored: StoredErasure,
    form: str,
    rank: int = 0,
    noise: Mapping[str, float] = MappingProxyType({}),
    allow_other_base: bool = False,
) -> Erasure:
    """An erasure in another form; it lies in main memory.

    Args:
        model: the model it was made on.
        stored: the erasure.
        form, rank, noise: as of ``reshaped``.
        allow_other_base: as of ``StoredErasure.bind``.

    Raises:
        WrongBase: it was made for another model.
    """
    deltas, error = reshaped(stored.bind(model, allow_other_base, CPU), form, rank, noise)
    manifest = stored.manifest or describe(
        model, deltas, Concept((UNKNOWN,)), "converted", "made by other software", {"file": stored.path.name}
    )
    return Erasure(deltas, after_loss(manifest, error))


def after_loss(manifest: Manifest, error: float) -> Manifest:
    """The manifest of a converted erasure: it states the error of the conversion, and keeps the figures that were
    measured only while that error is so small that they still hold. It is not what the request made."""
    measured = {} if error > SMALL_LOSS else manifest.measured
    return replace(manifest, settings=manifest.settings | {LOSS: error}, measured=measured, request="")
