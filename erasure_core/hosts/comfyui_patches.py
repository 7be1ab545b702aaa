"""Erasures as ComfyUI's own patches: put on clones of MODEL and CLIP, checked, and undone exactly by the host."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
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
        InvalidSettings: the part does not end behind its start.
    """

    unet: float = 1.0
    text: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
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
        _add(clip, model, text.deltas, strengths.of)
    if unet and strengths.always:
        _add(patcher, model, unet.deltas, strengths.of)
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
    deltas = stored.bind(model, True, device)
    places = tuple(sorted(model.stored_at(name) for name in deltas))
    seen = (manifest.base_fingerprint, tuple(manifest.base_sketch), places)
    if seen not in known:
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


def _add(target: Any, model: ComfyModel, deltas: Mapping[str, Delta], strength_of: Callable[[str], float]) -> None:
    """Add patches and check that the host took each of them: it leaves out unknown keys without a word."""
    groups: dict[float, dict[str, Any]] = {}
    for name, delta in deltas.items():
        if strength_of(name):
            groups.setdefault(strength_of(name), {})[model.key(name)] = patch_of(delta)
    for strength, patches in groups.items():
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


def is_applied(target: Any, keys: Mapping[str, Any]) -> bool:
    """Whether patches, by key, still act on a MODEL's or CLIP's patcher: these very objects, not equal ones, and none
    behind them that scales them away or sets the weight, as merging models does."""
    return all(_acts(target.patches.get(key, []), patch) for key, patch in keys.items())


def _acts(held: Sequence[Any], patch: Any) -> bool:
    place = next((i for i, entry in enumerate(held) if entry[1] is patch), None)
    if place is None:
        return False
    _, *behind = held[place:]
    return all(scale == 1.0 and not _sets(value) for _, value, scale, *_ in behind)


def _sets(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and value[0] == "set"


def carried(model: ComfyModel, deltas: DeltaSet) -> tuple[Any, Any] | None:
    """The patcher and the patch by which a graph's MODEL or CLIP has a change on it already, whoever put it there."""
    name = next(iter(deltas.changed()), None)
    if name is None:
        return None
    patcher = model.clip.patcher if is_text(name) else model.patcher
    ours = _tensors(patch_of(deltas[name]))
    for held in patcher.patches.get(model.key(name), []):
        theirs = _tensors(held[1])
        if len(theirs) == len(ours) and all(map(_equal, theirs, ours)):
            return patcher, held[1]
    return None


def _tensors(patch: Any) -> list[Tensor]:
    """The tensors of a patch: of a LoRA adapter, or of a difference."""
    values = getattr(patch, "weights", None) or (patch[1] if isinstance(patch, tuple) else ())
    return [value for value in values if isinstance(value, Tensor)]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one.to("cpu", other.dtype), other))
