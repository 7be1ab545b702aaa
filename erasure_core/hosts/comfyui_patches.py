"""Erasures as ComfyUI's own patches: put on clones of MODEL and CLIP, checked, and undone exactly by the host."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..delta import Delta, DeltaSet, LowRankDelta
from ..erasure_file import StoredErasure
from ..errors import InvalidSettings, ModelError
from ..layers import is_text
from .comfyui import WRAPPER_KEY, ComfyModel
from .comfyui_shares import missing, times, values_of

COMPILE_KEY = "torch.compile"
"""The host's own key for wrappers that exchange the network for a compiled one."""
_RECOGNISED: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()
"""For each loaded network the bases it was found to be: what a manifest says of them, and where the weights lie."""


@dataclass(frozen=True)
class Strengths:
    """How strongly an erasure is applied.

    Args:
        unet: factor on the changes of the diffusion network.
        text: factor on the changes of the text encoders.
        blocks: further factors by pattern of layer names; every pattern that fits multiplies.
        start, end: part of the sampling, 0 to 1, in which the diffusion network is changed.

    Raises:
        InvalidSettings: a strength is no number, or the part does not end behind its start.
    """

    unet: float = 1.0
    text: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for strength in (self.unet, self.text, *self.blocks.values()):
            if not math.isfinite(strength):
                raise InvalidSettings(f"The strength {strength} is no number that a change can have; write another.")
        if not self.start < self.end:
            raise InvalidSettings(
                f"The erasure would begin at {self.start:g} of the sampling and end at {self.end:g}, so it would do "
                "nothing; set start below end."
            )

    def of(self, layer: str) -> float:
        strength = self.text if is_text(layer) else self.unet
        for pattern, factor in self.blocks.items():
            if fnmatch.fnmatchcase(layer, pattern):
                strength *= factor
        return strength

    @property
    def always(self) -> bool:
        return self.start <= 0.0 and self.end >= 1.0


def parse_blocks(text: str) -> dict[str, float]:
    """Factors from lines like ``unet.down_blocks.* = 0.5``; lines that begin with # are skipped.

    Raises:
        InvalidSettings: a line of another form, or a factor outside -10 to 10.
    """
    factors: dict[str, float] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("#"):
            continue
        pattern, equals, number = (part.strip() for part in line.partition("="))
        try:
            factor = float(number)
        except ValueError:
            factor = float("nan")
        if not equals or not pattern or not -10 <= factor <= 10:
            raise InvalidSettings(f"{line!r} is no block weight; write for example: unet.down_blocks.* = 0.5")
        factors[pattern] = factor
    return factors


def apply_deltas(model: ComfyModel, deltas: DeltaSet, strengths: Strengths) -> tuple[Any, Any]:
    """Clones of a graph's MODEL and CLIP with a change on them; a part that is not connected stays ``None``.

    Raises:
        ModelError: the change needs a part that is not connected, the host did not take every key, or a part of the
            sampling is asked for on a compiled model.
    """
    changed = list(deltas)
    _check(model, changed)
    patcher = model.patcher.clone() if model.patcher is not None else None
    clip = model.clip.clone() if model.clip is not None else None
    unet, text = deltas.apart()
    if text:
        put(clip, wanted_patches(model, [(text, strengths)])[1])
    if unet and strengths.always:
        put(patcher, wanted_patches(model, [(unet, strengths)])[0])
    elif unet:
        _add_for_steps(patcher, model, unet.deltas, strengths)
    return patcher, clip


def _check(model: ComfyModel, changed: list[str]) -> None:
    if any(is_text(name) for name in changed) and model.clip is None:
        raise ModelError("This erasure changes the text encoder: connect CLIP as well, or nothing is applied.")
    if any(not is_text(name) for name in changed) and model.patcher is None:
        raise ModelError("This erasure changes the diffusion network: connect MODEL as well, or nothing is applied.")


def check_blocks(blocks: Mapping[str, float], changed: Sequence[str]) -> None:
    """Raises InvalidSettings for a block weight that fits none of the layers that the erasures together change."""
    for pattern in blocks:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in changed):
            example = next(iter(changed), "none")
            raise InvalidSettings(f"No changed layer fits the block weight {pattern!r}; the names look like {example}.")


def bound(
    stored: StoredErasure, model: ComfyModel, allow_other_base: bool = False, device: torch.device | None = None
) -> DeltaSet:
    """``stored.bind``, which reads all touched weights to recognise the base; that is done once for each loaded model.

    Raises:
        WrongBase: as ``bind``.
    """
    manifest = stored.manifest
    if manifest is None or allow_other_base:
        return stored.bind(model, allow_other_base, device)
    network = (model.patcher or model.clip.patcher).model
    known = _RECOGNISED.setdefault(network, set())
    deltas = stored.bind(model, bool(known), device)  # of a network that nothing is known of, at once
    places = tuple(sorted(model.stored_at(name) for name in deltas))
    seen = (manifest.base_fingerprint, tuple(manifest.base_sketch), places)
    if known and seen not in known:
        deltas = stored.bind(model, False, device)
    known.add(seen)
    return deltas


def patch_of(delta: Delta) -> Any:
    """A change in the form that ComfyUI's ``add_patches`` takes."""
    if isinstance(delta, LowRankDelta):
        from comfy.weight_adapter import LoRAAdapter

        return LoRAAdapter(set(), (_plain(delta.up), _plain(delta.down), float(delta.rank), None, None, None))
    return ("diff", (_plain(delta.change()),))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


Wanted = dict[str, list[tuple[float, Any]]]
"""Changes by the host's key of a weight: strength and patch."""


def wanted_patches(model: ComfyModel, parts: Sequence[tuple[DeltaSet, Strengths]]) -> tuple[Wanted, Wanted]:
    """What changes at their strengths ask for together, of the diffusion network and of the text encoders.

    Raises:
        ModelError: a change needs a part that is not connected.
    """
    found: tuple[Wanted, Wanted] = ({}, {})
    for deltas, strengths in parts:
        _check(model, list(deltas))
        for name, delta in deltas.deltas.items():
            if strengths.of(name):
                _join(found[is_text(name)].setdefault(model.key(name), []), strengths.of(name), patch_of(delta))
    return found


def _join(wanted: list[tuple[float, Any]], strength: float, patch: Any) -> None:
    """Add a patch to those of one weight; one that is there already, as of a file named twice, gets stronger."""
    for place, (before, held) in enumerate(wanted):
        if again := times(patch, held):
            wanted[place] = (before + strength * again, held)
            return
    wanted.append((strength, patch))


def lacking(patcher: Any, wanted: Wanted) -> Wanted:
    """What a MODEL's or CLIP's patcher lacks of wanted changes, whoever put there what it has.

    Raises:
        ModelError: that cannot be told.
    """
    found = {
        key: [
            (more, patch)
            for strength, patch in each
            if (more := missing(patcher.patches.get(key, []), patch, strength))
        ]
        for key, each in wanted.items()
    }
    return {key: each for key, each in found.items() if each}


def refuse_taken_back(patcher: Any, wanted: Wanted) -> None:
    """Raises ModelError where a change for a part of the sampling takes wanted changes back: it is on no weight."""
    kinds = getattr(patcher, "wrappers", {}).values()
    ours = [
        each for by_key in kinds for key, all_of in by_key.items() if key.startswith(WRAPPER_KEY) for each in all_of
    ]
    for wrapper in ours:
        for key, each in getattr(wrapper, "changes", {}).items():
            if any(strength < 0 and times(patch, held) for strength, patch in each for _, held in wanted.get(key, ())):
                raise ModelError(
                    "an Apply Erasure node with a negative strength takes one of its files back for a part of the "
                    "sampling; remove that node."
                )


def put(target: Any, wanted: Wanted) -> None:
    """Add patches to a MODEL or CLIP and check that the host took each of them: it leaves out unknown keys without a
    word.

    Raises:
        ModelError: it left one out.
    """
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for key, each in wanted.items():
        for place, (strength, patch) in enumerate(each):
            groups.setdefault((place, strength), {})[key] = patch
    for (_, strength), patches in groups.items():
        taken = set(target.add_patches(patches, strength))
        refused = sorted(set(patches) - taken)
        if refused:
            raise ModelError(
                f"ComfyUI did not take the change of {refused[0]} and {len(refused) - 1} more; nothing is applied."
            )


def _add_for_steps(patcher: Any, model: ComfyModel, deltas: Mapping[str, Delta], strengths: Strengths) -> None:
    """Change the network in a part of the sampling only: by hooks on its layers during the calls of these steps."""
    import comfy.patcher_extension as extension

    kind = extension.WrappersMP.APPLY_MODEL
    _refuse_compiled(patcher.get_wrappers(kind, COMPILE_KEY))
    sampling = patcher.get_model_object("model_sampling")
    first, last = (float(sampling.percent_to_sigma(share)) for share in (strengths.start, strengths.end))
    paths = {name: model.key(name).removesuffix(".weight") for name in deltas}
    parts: dict[float, dict[str, Delta]] = {}
    for name, delta in deltas.items():
        parts.setdefault(strengths.of(name), {})[name] = delta
    sets = [DeltaSet(part, strength) for strength, part in parts.items()]

    def within(executor: Any, x: Tensor, t: Tensor, *others: Any, **named: Any) -> Any:
        # A node behind ours may have compiled the model; what is on it is told with each call.
        for options in (each for each in (*others, *named.values()) if isinstance(each, dict)):
            _refuse_compiled(extension.get_wrappers_with_key(kind, COMPILE_KEY, options))
        if not last <= float(t.max()) <= first:
            return executor(x, t, *others, **named)
        # Of the network that this very call runs: the host may have exchanged the one that Apply Erasure saw.
        layers = {name: _layer_at(executor.class_obj, path) for name, path in paths.items()}
        with ExitStack() as stack:
            for deltas_of_one_strength in sets:
                # Each layer's change is copied to it in the call: what stays on the device is not the host's to free.
                stack.enter_context(deltas_of_one_strength.attached(layers))
            return executor(x, t, *others, **named)

    within.changes = wanted_patches(model, [(DeltaSet(dict(deltas)), strengths)])[0]  # type: ignore[attr-defined]
    # Several erasures may be limited to steps, each under a key of its own.
    place = len(patcher.get_all_wrappers(kind))
    patcher.add_wrapper_with_key(kind, f"{WRAPPER_KEY}_{place}", within)


def _layer_at(network: Any, path: str) -> torch.nn.Module:
    try:
        found: torch.nn.Module = network.get_submodule(path)
    except AttributeError:
        raise ModelError(
            f"The network that samples has no layer {path}, so an erasure for a part of the sampling cannot be applied "
            "to it; set start to 0 and end to 1."
        ) from None
    return found


def _refuse_compiled(wrappers: Any) -> None:
    """A compiled network leaves out hooks that are hung on it after its first call, without a word."""
    if wrappers:
        raise ModelError(
            "An erasure for a part of the sampling does nothing on a compiled model: remove the node that compiles it, "
            "or set start to 0 and end to 1."
        )


def carried(model: ComfyModel, deltas: DeltaSet) -> tuple[Any, Any] | None:
    """The patcher and the patch by which a graph's MODEL or CLIP has a change on it already, whoever put it there."""
    name = next(iter(deltas.changed()), None)
    if name is None:
        return None
    patcher = model.clip.patcher if is_text(name) else model.patcher
    ours = patch_of(deltas[name])
    return next(
        ((patcher, held) for held in values_of(patcher.patches.get(model.key(name), [])) if times(held, ours)), None
    )
