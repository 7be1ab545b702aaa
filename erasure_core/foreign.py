"""Reads weights that others publish, which no UI loads as they are: ESD, UCE, AdvUnlearn, diffusers LoRAs and the like.

Those are whole weights of some or all layers of the UNet or the text encoder, by diffusers' or the original names, or
PEFT's pairs of factors. The change is their difference to the base model, so the base they were made on is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .delta import LARGEST, Delta, DeltaSet, DenseDelta, LowRankDelta
from .erasure_file import StoredErasure, changes_of, refuse_dora
from .errors import InvalidFile, ModelError, WrongBase
from .foreign_names import is_beside, other_names, plain_names, text_names, unet_names
from .layers import is_text
from .model import LoadedModel
from .plain_weights import load_weights
from .safe_files import read_header, read_text
from .strict_json import parse_json

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
OTHERS = "norms, biases and embeddings"
CONVERTED = ("converted", "made by other software; converted to this format")
"""Method and its status in the manifest of what other software made."""
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
        left_out: names of changed tensors that are no weights of linear or convolution layers (norms, biases,
            embeddings): erasure files do not hold them.
        left_out_share: their share of the whole change, as a ratio of norms.
        unread: names of tensors that this model has not, such as those of a text encoder where a host has connected
            none: whether they are changed is not known.
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
        others: the base's parameters that are no layer weights (biases, norms, embeddings), of the UNet by diffusers'
            names, of text encoders by canonical ones.

    Raises:
        InvalidFile: unreadable, unsafe, no weights of this model in it, or one of them twice.
        WrongBase: the weights belong to another base.
        ModelError: it changes only the text encoder, or is a LoRA that does, and a host has connected none.
    """
    tensors, metadata = load_weights(path)
    refuse_dora(path, tensors)
    if all(name.startswith("lora_") for name in tensors):  # kohya's names, in a pickle: else it needs no conversion
        _check_text(path, tensors, model)
        changes = StoredErasure(changes_of(path, tensors), None, path)
        return ForeignChange(changes.bind(model), [], 0.0)
    tensors = plain_names(path, tensors)
    if any(name.endswith(tuple(FACTORS)) for name in tensors):
        return _from_factors(path, tensors, _stated_alpha(path, metadata.get(NOTE) or _note_beside(path)), model)
    return _from_weights(path, tensors, model, others)


def _check_text(path: Path, names: Iterable[str], model: LoadedModel) -> None:
    """Raises ModelError for changes of a text encoder where the model comes without any."""
    if any(name.startswith(TEXT_BEGINNINGS) for name in names) and not any(map(is_text, model.layers())):
        raise ModelError(f"{path.name} changes the text encoder: connect CLIP as well.")


def _from_weights(
    path: Path, tensors: Mapping[str, Tensor], model: LoadedModel, others: Mapping[str, Tensor]
) -> ForeignChange:
    names, known = unet_names(model) | text_names(model), other_names(model, others)
    deltas: dict[str, Delta] = {}
    noise: dict[str, float] = {}
    beside: dict[str, Tensor] = {}
    unread: list[str] = []
    read: set[str] = set()
    apart = 0.0
    for key, tensor in tensors.items():
        name = names.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        if name is None:
            if key in known and tensor.shape == others[known[key]].shape:
                beside[known[key]] = tensor
            elif not is_beside(key):
                unread.append(key)
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
        raise _unknown(path, tensors, model)
    if apart > FAR:
        raise WrongBase(
            f"{path} was made on another base: a weight differs from this model's by {apart:.0%}; {GIVE_BASE}."
        )
    left_out, share = _changed_others(beside, deltas, others)
    if not deltas:
        held = f"changes of {OTHERS} only" if left_out else "the base model's own weights"
        raise InvalidFile(f"{path} holds {held}; there is nothing to convert.")
    return ForeignChange(DeltaSet(deltas), left_out, share, tuple(sorted(unread)), noise)


def _unknown(path: Path, names: Iterable[str], model: LoadedModel) -> InvalidFile:
    """What to say of a file without any weight of a model by a known name; raises as ``_check_text``."""
    _check_text(path, names, model)
    if any(name.startswith("text_model.") for name in names):
        return InvalidFile(
            f"{path} does not say which of the model's text encoders it is of; give it with text_encoder. or "
            "text_encoder_2. before each name."
        )
    return InvalidFile(
        f"{path} holds no weight of this model's UNet or text encoder by a known name; it cannot be converted. If it "
        f"is for another kind of model, {GIVE_BASE}."
    )


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
    given: Mapping[str, Tensor], deltas: Mapping[str, Delta], others: Mapping[str, Tensor]
) -> tuple[list[str], float]:
    """Which tensors beside layer weights differ from the base's, and how much of the change they are."""
    changed = {name: _difference(tensor, others[name].detach().cpu())[0] for name, tensor in given.items()}
    changed = {name: difference for name, difference in changed.items() if difference.abs().max() > 0}
    missed = sum(float(difference.double().square().sum()) for difference in changed.values())
    whole = missed + sum(delta.norm() ** 2 for delta in deltas.values())
    return sorted(changed), (missed / whole) ** 0.5 if whole else 0.0


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
    names = unet_names(model) | text_names(model)
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
        left_out: names of changed tensors that erasure files do not hold; left_out_share: their share of the change;
        unread: how many tensors the model does not have.
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
    return f"Not kept, as erasure files hold weights of layers only: {count} {OTHERS}, {share:.1%} of the change."


def looks_foreign(path: Path) -> bool:
    """Whether a file has to be converted before ``read_erasure`` reads it."""
    if path.suffix != ".safetensors":
        return True
    names = [name for name in read_header(path) if name != "__metadata__"]
    return not all(name.startswith("lora_") for name in names)
