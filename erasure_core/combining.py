"""New erasures from finished ones: several in one, or one in another form, each with a manifest that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .algebra import dense, low_rank, merged
from .concept import Concept
from .delta import Delta, DeltaSet, LowRankDelta
from .erasing import describe
from .erasure_file import Erasure, StoredErasure
from .layers import is_text
from .manifest import Manifest
from .model import LoadedModel
from .naming import file_names

UNKNOWN = "unknown"
"""What a plain LoRA without a manifest is said to erase."""
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
    alternatives = {manifest.alternative for manifest in manifests}
    words = tuple(word for manifest in manifests for word in manifest.words) or (UNKNOWN,)
    keep = tuple(prompt for manifest in manifests for prompt in manifest.keep)
    # One part's kept prompt may be another part's concept.
    erased = {said.casefold() for said, _ in Concept(words).prompts()}
    kept = tuple(prompt for prompt in keep if prompt.casefold() not in erased)
    alternative = alternatives.pop() if len(alternatives) == 1 else None
    is_erased = alternative is not None and alternative.casefold() in {word.casefold() for word in words}
    return Concept(words, None if is_erased else alternative, kept)


def merge(model: LoadedModel, parts: Sequence[Part], allow_other_base: bool = False) -> Erasure:
    """The sum of erasures of one base at their strengths, exact.

    Raises:
        WrongBase: a part was made for another model.
    """
    bound = [(_weighted(part, part.stored.bind(model, allow_other_base)), 1.0) for part in parts]
    deltas = merged(bound)
    origin = [{"file": part.stored.path.name, "strength": part.unet, "strength_text": part.text} for part in parts]
    known = [part.stored.manifest for part in parts if part.stored.manifest is not None]
    manifest = describe(model, deltas, all_words(known), "merge", MERGED, {"parts": origin})
    return Erasure(deltas, manifest)


def _weighted(part: Part, deltas: DeltaSet) -> DeltaSet:
    """A part's changes at its strengths; a sum with one summand scales."""
    text = DeltaSet({name: delta for name, delta in deltas.deltas.items() if is_text(name)})
    unet = DeltaSet({name: delta for name, delta in deltas.deltas.items() if not is_text(name)})
    return merged([(text, part.text), (unet, part.unet)])


def reshaped(deltas: DeltaSet, form: str, rank: int = 0) -> tuple[DeltaSet, float]:
    """A change as ``low-rank`` or ``dense``, with the relative error of the conversion.

    Args:
        deltas: the change.
        form: ``low-rank`` or ``dense``.
        rank: largest rank; 0 takes the least that is exact.
    """
    if form == "dense":
        return dense(deltas), 0.0
    if rank or not all(isinstance(delta, LowRankDelta) for delta in deltas.deltas.values()):
        return low_rank(deltas, rank)
    return deltas, 0.0


def stored_form(model: LoadedModel, deltas: DeltaSet, manifest: Manifest | None, path: Path) -> StoredErasure:
    """An erasure in memory as if it had been read from a file."""
    is_dense = not all(isinstance(delta, LowRankDelta) for delta in deltas.deltas.values())
    names = file_names(model.layers(), model.family, is_dense)
    whole = dense(deltas).deltas if is_dense else deltas.deltas
    changes: dict[str, Delta] = {names[name]: delta for name, delta in whole.items()}
    return StoredErasure(changes, manifest, path)


def converted(model: LoadedModel, stored: StoredErasure, form: str, rank: int = 0) -> Erasure:
    """An erasure in another form; its manifest states the error of the conversion.

    Raises:
        WrongBase: it was made for another model.
    """
    deltas, error = reshaped(stored.bind(model), form, rank)
    manifest = stored.manifest or describe(
        model, deltas, Concept((UNKNOWN,)), "converted", "made by other software", {"file": stored.path.name}
    )
    return Erasure(deltas, replace(manifest, settings=manifest.settings | {"conversion_error": error}))
