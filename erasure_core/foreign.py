"""Reads weights that others publish, which no UI loads as they are: ESD, UCE, concept ablation, diffusers LoRAs.

Those are whole weights of some or all UNet layers, by diffusers' or the original names, or PEFT's pairs of factors. The
change is their difference to the base model, so the base they were made on is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .delta import Delta, DeltaSet, DenseDelta, LowRankDelta
from .errors import InvalidFile, WrongBase
from .model import LoadedModel
from .naming import ldm_paths
from .safe_files import MAX_SIZE, read_header, read_tensors

PREFIXES = ("module.", "unet.", "model.diffusion_model.", "diffusion_model.", "base_model.model.")
FACTORS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
}
FAR = 0.9
"""Relative distance of a weight to the base's from which they cannot belong together."""


@dataclass(frozen=True)
class ForeignChange:
    """What a foreign file changes.

    Args:
        deltas: by canonical layer name; dense ones are exact, PEFT's stay low rank.
        left_out: names of changed tensors that are no weights of linear or convolution layers (norms, biases): no LoRA
            file can hold them.
        left_out_share: their share of the whole change, as a ratio of norms.
    """

    deltas: DeltaSet
    left_out: list[str]
    left_out_share: float


def read_foreign(path: Path, model: LoadedModel, others: Mapping[str, Tensor]) -> ForeignChange:
    """Read a published erasure of a known base.

    Args:
        path: .safetensors, or .pt, .pth, .bin and .ckpt, which are read without running any code in them.
        model: the base it was made on.
        others: the base UNet's parameters that are no layer weights (biases, norms), by diffusers' names.

    Raises:
        InvalidFile: unreadable, unsafe, or no weights of this model's UNet in it.
        WrongBase: the weights belong to another base.
    """
    tensors = _plain_names(_load(path))
    factors = {name: tensor for name, tensor in tensors.items() if any(name.endswith(end) for end in FACTORS)}
    return _from_factors(path, factors, model) if factors else _from_weights(path, tensors, model, others)


def _load(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if path.is_file() and path.stat().st_size > MAX_SIZE:
        raise InvalidFile(f"{path} is {path.stat().st_size} bytes long: too large to trust.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except Exception as error:  # the unpickler raises its own types, among them for code it refuses to run
        raise InvalidFile(f"{path} is damaged, or holds more than weights; only plain weights are read.") from error
    flat = _flat(content)
    if not flat:
        raise InvalidFile(f"{path} holds no weights.")
    return flat


def _flat(content: object, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Tensors of nested dictionaries, such as {"unet": {...}} or {"state_dict": {...}}."""
    found: dict[str, Tensor] = {}
    if isinstance(content, Mapping) and depth < 4:
        for key, value in content.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            else:
                found |= _flat(value, "" if key == "state_dict" else f"{prefix}{key}.", depth + 1)
    return found


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that scripts and wrappers put before them."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stripped = True
        while stripped:
            stripped = any(name.startswith(prefix) for prefix in PREFIXES)
            name = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        plain[name] = tensor
    return plain


def _unet_names(model: LoadedModel) -> dict[str, str]:
    """UNet module paths, in diffusers' and in the original naming, to canonical layer names."""
    paths = [name.removeprefix("unet.") for name in model.layers() if name.startswith("unet.")]
    return {path: f"unet.{path}" for path in paths} | {
        theirs: f"unet.{ours}" for ours, theirs in ldm_paths(paths).items()
    }


def _from_weights(
    path: Path, tensors: Mapping[str, Tensor], model: LoadedModel, others: Mapping[str, Tensor]
) -> ForeignChange:
    names = _unet_names(model)
    deltas: dict[str, Delta] = {}
    left_out: list[str] = []
    seen, apart = 0, 0.0
    for key, tensor in tensors.items():
        name = names.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        if name is None:
            left_out.append(key)
            continue
        base = model.base_weight(name).detach().cpu().float()
        if tensor.shape != base.shape:
            raise WrongBase(f"{path} has {key} as {tuple(tensor.shape)}, but this model's is {tuple(base.shape)}.")
        change = tensor.float() - base
        seen, apart = seen + 1, max(apart, float(change.norm() / base.norm()))
        if change.abs().max() > 0:
            deltas[name] = DenseDelta(change)
    if not seen:
        raise InvalidFile(f"{path} holds no weight of this model's UNet by a known name; it cannot be converted.")
    if apart > FAR:
        raise WrongBase(f"{path} was made on another base: a weight differs from this model's by {apart:.0%}.")
    if not deltas:
        raise InvalidFile(f"{path} holds the base model's own weights; there is nothing to convert.")
    return ForeignChange(DeltaSet(deltas), *_changed_others(left_out, tensors, deltas, others))


def _changed_others(
    names: list[str], tensors: Mapping[str, Tensor], deltas: Mapping[str, Delta], others: Mapping[str, Tensor]
) -> tuple[list[str], float]:
    """Which tensors beside layer weights differ from the base's, and how much of the change they are."""
    known = [name for name in names if name in others and others[name].shape == tensors[name].shape]
    changed = {name: tensors[name].float() - others[name].detach().cpu().float() for name in known}
    changed = {name: difference for name, difference in changed.items() if difference.abs().max() > 0}
    missed = sum(float(difference.double().square().sum()) for difference in changed.values())
    whole = missed + sum(delta.norm() ** 2 for delta in deltas.values())
    return sorted(changed), (missed / whole) ** 0.5


def _from_factors(path: Path, tensors: Mapping[str, Tensor], model: LoadedModel) -> ForeignChange:
    names = _unet_names(model)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next(end for end in FACTORS if key.endswith(end))
        pairs.setdefault(key.removesuffix(ending), {})[FACTORS[ending]] = tensor.float()
    deltas: dict[str, Delta] = {}
    for module, pair in pairs.items():
        if module not in names or set(pair) != {"up", "down"} or pair["up"].shape[1] != len(pair["down"]):
            raise InvalidFile(f"{path} holds an incomplete or unknown change of {module!r}; it cannot be converted.")
        delta = LowRankDelta(pair["down"], pair["up"])
        if delta.shape != model.base_weight(names[module]).shape:
            raise WrongBase(f"{path} changes {module} as {tuple(delta.shape)}, which this model's is not.")
        deltas[names[module]] = delta
    return ForeignChange(DeltaSet(deltas), [], 0.0)


def looks_foreign(path: Path) -> bool:
    """Whether a file has to be converted before ``read_erasure`` reads it."""
    if path.suffix != ".safetensors":
        return True
    names = [name for name in read_header(path) if name != "__metadata__"]
    return not all(name.startswith("lora_") for name in names)
