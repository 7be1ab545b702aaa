"""Reads weights that others publish, which no UI loads as they are: ESD, UCE, concept ablation, diffusers LoRAs.

Those are whole weights of some or all UNet layers, by diffusers' or the original names, or PEFT's pairs of factors. The
change is their difference to the base model, so the base they were made on is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .delta import LARGEST, Delta, DeltaSet, DenseDelta, LowRankDelta
from .erasure_file import StoredErasure, changes_of
from .errors import InvalidFile, ModelError, WrongBase
from .layers import is_text
from .model import LoadedModel
from .naming import ldm_paths
from .plain_weights import load_weights
from .safe_files import read_header, read_text
from .strict_json import parse_json

PREFIXES = ("module.", "unet.", "model.diffusion_model.", "diffusion_model.", "base_model.model.")
FACTORS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
}
TEXT_BEGINNINGS = ("text_encoder", "text_model.", "lora_te")
ALPHA = ".alpha"
NOTE = "lora_adapter_metadata"
MAX_NOTE = 10_000
UNUSUAL = ("alpha_pattern", "use_dora", "use_rslora")
GIVE_BASE = "give the base model that it was made on"
FAR = 0.9
"""Relative distance of a weight to the base's from which they cannot belong together."""
CHANCE = 1.1
"""How far above its expected norm rounding may be by chance, in small layers."""


@dataclass(frozen=True)
class ForeignChange:
    """What a foreign file changes.

    Args:
        deltas: by canonical layer name; dense ones are exact, PEFT's stay low rank.
        left_out: names of changed tensors that are no weights of linear or convolution layers (norms, biases): no LoRA
            file can hold them.
        left_out_share: their share of the whole change, as a ratio of norms.
        unread: names of tensors that this model's UNet has not, such as those of a text encoder: whether they are
            changed is not known.
        noise: for each dense change the share of it that may be the rounding of the file or of the base.
    """

    deltas: DeltaSet
    left_out: list[str]
    left_out_share: float
    unread: tuple[str, ...] = ()
    noise: Mapping[str, float] = field(default_factory=dict)

    def source(self, path: Path) -> dict[str, Any]:
        """Where the change is from and what of it is missing, for a manifest's settings."""
        missing = {"left_out": self.left_out, "left_out_share": self.left_out_share, "unread": len(self.unread)}
        return {"file": path.name, **missing}


def read_foreign(path: Path, model: LoadedModel, others: Mapping[str, Tensor]) -> ForeignChange:
    """Read a published erasure of a known base.

    Args:
        path: .safetensors, or .pt, .pth, .bin and .ckpt, which are read without running any code in them.
        model: the base it was made on.
        others: the base UNet's parameters that are no layer weights (biases, norms), by diffusers' names.

    Raises:
        InvalidFile: unreadable, unsafe, no weights of this model's UNet in it, or one of them twice.
        WrongBase: the weights belong to another base.
        ModelError: a LoRA changes the text encoder, and a host has connected none.
    """
    tensors, metadata = load_weights(path)
    if all(name.startswith("lora_") for name in tensors):  # kohya's names, in a pickle: else it needs no conversion
        _check_text(path, tensors, model)
        changes = StoredErasure(changes_of(path, tensors), None, path)
        return ForeignChange(changes.bind(model), [], 0.0)
    tensors = _plain_names(path, tensors)
    if any(name.endswith(tuple(FACTORS)) for name in tensors):
        return _from_factors(path, tensors, _stated_alpha(path, metadata.get(NOTE) or _note_beside(path)), model)
    return _from_weights(path, tensors, model, others)


def _plain_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that scripts and wrappers put before them."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stripped = True
        while stripped:
            stripped = any(name.startswith(prefix) for prefix in PREFIXES)
            name = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        # diffusers' first form, in which the attention's processor held the factors
        name = re.sub(r"\.processor\.(to_[qkv])_lora\.(down|up)\.weight$", r".\1.lora.\2.weight", name)
        name = re.sub(r"\.processor\.to_out_lora\.(down|up)\.weight$", r".to_out.0.lora.\1.weight", name)
        if name in plain:
            raise InvalidFile(f"{path} holds {name[:80]!r} twice, under different prefixes; it cannot be converted.")
        plain[name] = tensor
    return plain


def _unet_names(model: LoadedModel) -> dict[str, str]:
    """UNet module paths, in diffusers' and in the original naming, to canonical layer names."""
    paths = [name.removeprefix("unet.") for name in model.layers() if name.startswith("unet.")]
    return {path: f"unet.{path}" for path in paths} | {
        theirs: f"unet.{ours}" for ours, theirs in ldm_paths(paths).items()
    }


def _text_names(model: LoadedModel) -> dict[str, str]:
    """Module paths of text encoders to canonical layer names: with and without transformers 4's ``text_model.``, and
    where there is one encoder only also as peft names it, by itself."""
    own = [name for name in model.layers() if is_text(name)]
    names = {name: name for name in own} | {name.replace(".text_model.", ".", 1): name for name in own}
    if len({name.partition(".")[0] for name in own}) == 1:
        names |= {path.partition(".")[2]: name for path, name in names.items()}
    return names


def _check_text(path: Path, names: Iterable[str], model: LoadedModel) -> None:
    """Raises ModelError for LoRA factors of a text encoder where the model comes without any."""
    if any(name.startswith(TEXT_BEGINNINGS) for name in names) and not any(map(is_text, model.layers())):
        raise ModelError(f"{path.name} changes the text encoder: connect CLIP as well.")


def _from_weights(
    path: Path, tensors: Mapping[str, Tensor], model: LoadedModel, others: Mapping[str, Tensor]
) -> ForeignChange:
    names = _unet_names(model)
    deltas: dict[str, Delta] = {}
    noise: dict[str, float] = {}
    left_out: list[str] = []
    read: set[str] = set()
    apart = 0.0
    for key, tensor in tensors.items():
        name = names.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        if name is None:
            left_out.append(key)
            continue
        base = model.base_weight(name).detach().cpu()
        if tensor.shape != base.shape:
            raise WrongBase(
                f"{path} has {key} as {tuple(tensor.shape)}, but this model's is {tuple(base.shape)}; {GIVE_BASE}."
            )
        if name in read:
            raise InvalidFile(f"{path} holds {name!r} twice, by two names; it cannot be converted.")
        read.add(name)
        change, rounding = _difference(tensor, base)
        apart = max(apart, float(change.norm() / base.float().norm()))
        if change.abs().max() > 0:
            deltas[name], noise[name] = DenseDelta(change), rounding / float(change.norm())
    if not read:
        raise InvalidFile(
            f"{path} holds no weight of this model's UNet by a known name; it cannot be converted. If it is for "
            f"another kind of model, {GIVE_BASE}."
        )
    if apart > FAR:
        raise WrongBase(
            f"{path} was made on another base: a weight differs from this model's by {apart:.0%}; {GIVE_BASE}."
        )
    if not deltas:
        raise InvalidFile(f"{path} holds the base model's own weights; there is nothing to convert.")
    unread = tuple(sorted(name for name in left_out if name not in others))
    return ForeignChange(DeltaSet(deltas), *_changed_others(left_out, tensors, deltas, others), unread, noise)


def _difference(tensor: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """A published weight less the base's, and the norm of what rounding may add to that.

    What is equal in the coarser of their two types was not changed: most files are published in 16 bits, and in finer
    ones every weight would differ by its rounding. What was changed differs by the file's own rounding and no more.
    """
    floats = [held.dtype for held in (tensor, base) if held.is_floating_point() and held.element_size() > 1]
    coarser = max([torch.float32, *floats], key=lambda dtype: torch.finfo(dtype).eps)
    if torch.equal(tensor.to(coarser), base.to(coarser)):
        return torch.zeros_like(base, dtype=torch.float32), 0.0
    rounded = tensor if tensor.dtype == coarser else base
    return tensor.float() - base.float(), CHANCE * _rounding(rounded.float(), coarser)


def _rounding(weight: Tensor, dtype: torch.dtype) -> float:
    """The norm of what rounding to a type adds: errors spread evenly over a step of width q deviate by q / sqrt(12)."""
    limits = torch.finfo(dtype)
    power_above = torch.frexp(weight.abs().clamp(min=limits.smallest_normal)).exponent
    steps = torch.ldexp(torch.full_like(weight, limits.eps / 2), power_above)
    return float(steps.norm()) / math.sqrt(12)


def _changed_others(
    names: list[str], tensors: Mapping[str, Tensor], deltas: Mapping[str, Delta], others: Mapping[str, Tensor]
) -> tuple[list[str], float]:
    """Which tensors beside layer weights differ from the base's, and how much of the change they are."""
    known = [name for name in names if name in others and others[name].shape == tensors[name].shape]
    changed = {name: _difference(tensors[name], others[name].detach().cpu())[0] for name in known}
    changed = {name: difference for name, difference in changed.items() if difference.abs().max() > 0}
    missed = sum(float(difference.double().square().sum()) for difference in changed.values())
    whole = missed + sum(delta.norm() ** 2 for delta in deltas.values())
    return sorted(changed), (missed / whole) ** 0.5


def _note_beside(path: Path) -> str | None:
    """What peft writes into the same folder about the factors; it calls both files by these names.

    Raises:
        InvalidFile: it cannot be read.
    """
    beside = path.with_name("adapter_config.json")
    return read_text(beside) if path.stem == "adapter_model" and beside.is_file() else None


def _stated_alpha(path: Path, note: str | None) -> float | None:
    """LoRA's alpha as diffusers and peft note it beside the factors; ``None`` where it is the rank.

    Raises:
        InvalidFile: the note cannot be read, or each layer has its own.
    """
    if note is None:
        return None
    try:
        entries = [(key.rpartition(".")[2], value) for key, value in parse_json(note, MAX_NOTE).items()]
        alphas = {float(value) for key, value in entries if key == "lora_alpha"}
        if len(alphas) > 1 or any(value for key, value in entries if key in UNUSUAL):
            raise ValueError("layers have scales of their own, or it is no plain LoRA")
        return alphas.pop() if alphas else None
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidFile(f"{path} has notes on its LoRA that cannot be used ({error}).") from error


def _from_factors(
    path: Path, tensors: Mapping[str, Tensor], stated_alpha: float | None, model: LoadedModel
) -> ForeignChange:
    _check_text(path, tensors, model)
    names = _unet_names(model) | _text_names(model)
    pairs: dict[str, dict[str, Tensor]] = {}
    left_out = []
    for key, tensor in tensors.items():
        ending = next((end for end in (*FACTORS, ALPHA) if key.endswith(end)), None)
        if ending is None:
            left_out.append(key)
        else:
            pair, part = pairs.setdefault(key.removesuffix(ending), {}), FACTORS.get(ending, "alpha")
            if part in pair:
                raise InvalidFile(f"{path} holds {key.removesuffix(ending)!r} twice; it cannot be converted.")
            pair[part] = tensor
    if left_out:
        raise InvalidFile(f"{path} holds {left_out[0][:80]!r} beside LoRA factors; it is no plain LoRA.")
    deltas: dict[str, Delta] = {}
    for module, pair in pairs.items():
        if module not in names or not {"up", "down"} <= pair.keys():
            raise InvalidFile(f"{path} holds an incomplete or unknown change of {module!r}; it cannot be converted.")
        if names[module] in deltas:
            raise InvalidFile(f"{path} holds {names[module]!r} twice, by two names; it cannot be converted.")
        deltas[names[module]] = _factored(path, module, pair, stated_alpha, model.base_weight(names[module]).shape)
    return ForeignChange(DeltaSet(deltas), [], 0.0)


def _factored(
    path: Path, module: str, pair: Mapping[str, Tensor], stated_alpha: float | None, shape: torch.Size
) -> LowRankDelta:
    """One pair of factors, scaled by alpha / rank, of the shape that the layer has."""
    up, down = pair["up"], pair["down"]
    if up.dim() != down.dim() or up.dim() not in (2, 4) or not len(down) or up.shape[1] != len(down):
        raise InvalidFile(f"{path} holds an incomplete or unknown change of {module!r}; it cannot be converted.")
    if (len(up), *down.shape[1:]) != tuple(shape) or up[0, 0].numel() != 1:
        raise WrongBase(
            f"{path} changes {module} as {(len(up), *down.shape[1:])}, but this model's is {tuple(shape)}; {GIVE_BASE}."
        )
    alpha = pair.get("alpha", torch.tensor(float(len(down)) if stated_alpha is None else stated_alpha))
    if alpha.numel() != 1:
        raise InvalidFile(f"{path} holds {alpha.numel()} numbers as the scale of {module!r}; it cannot be converted.")
    delta = LowRankDelta(down, up.float() * (alpha.item() / len(down)))
    if not delta.norm() <= LARGEST:
        raise InvalidFile(f"{path} holds a change of {module!r} that is not finite; it cannot be converted.")
    return delta


def missing_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a conversion left out, as a manifest's settings tell it; a stranger's may tell anything.

    Returns:
        left_out: names of tensors that no LoRA can hold; left_out_share: their share of the change; unread: how many
        tensors the UNet does not have.
    """
    names, share, unread = settings.get("left_out"), settings.get("left_out_share"), settings.get("unread")
    told = isinstance(names, list) and all(isinstance(name, str) for name in names) and isinstance(share, (int, float))
    missing = {"left_out": names, "left_out_share": share} if told else {"left_out": [], "left_out_share": 0.0}
    return {**missing, "unread": unread if isinstance(unread, int) else 0}


def not_kept(missing: Mapping[str, Any]) -> str:
    """A sentence on what ``missing_of`` tells was left out; empty where nothing was."""
    if not missing["left_out"]:
        return ""
    count, share = len(missing["left_out"]), missing["left_out_share"]
    return f"Not kept, as no LoRA can hold them: {count} norms and biases, {share:.1%} of the change."


def looks_foreign(path: Path) -> bool:
    """Whether a file has to be converted before ``read_erasure`` reads it."""
    if path.suffix != ".safetensors":
        return True
    names = [name for name in read_header(path) if name != "__metadata__"]
    return not all(name.startswith("lora_") for name in names)
