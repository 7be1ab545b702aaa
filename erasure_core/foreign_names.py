"""Names of tensors in files that others publish, and which part of a loaded model each of them means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from .errors import InvalidFile
from .layers import is_text
from .model import LoadedModel
from .naming import ldm_paths

PREFIXES = ("module.", "unet.", "model.diffusion_model.", "diffusion_model.", "base_model.model.")
LDM_TEXT = re.compile(r"^(cond_stage_model|conditioner\.embedders\.0)\.transformer\.")
BESIDE = re.compile(
    r"first_stage_model\.|model_ema\.|(betas|alphas|sqrt_|posterior_|log_one_minus_|lvlb_weights|logvar)[^.]*$"
    r"|(.*\.)?position_ids$"
)
"""What whole checkpoints hold beside the networks that are erased in: the autoencoder, averages, the noise schedule,
and places in a row."""


def plain_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that scripts and wrappers put before them.

    Raises:
        InvalidFile: two names differ in their prefixes only.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stripped = True
        while stripped:
            stripped = any(name.startswith(prefix) for prefix in PREFIXES)
            name = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        name = LDM_TEXT.sub("text_encoder.", name)
        # diffusers' first form, in which the attention's processor held the factors
        name = re.sub(r"\.processor\.(to_[qkv])_lora\.(down|up)\.weight$", r".\1.lora.\2.weight", name)
        name = re.sub(r"\.processor\.to_out_lora\.(down|up)\.weight$", r".to_out.0.lora.\1.weight", name)
        if name in plain:
            raise InvalidFile(f"{path} holds {name[:80]!r} twice, under different prefixes; it cannot be converted.")
        plain[name] = tensor
    return plain


def unet_names(model: LoadedModel) -> dict[str, str]:
    """UNet module paths, in diffusers' and in the original naming, to canonical layer names."""
    paths = [name.removeprefix("unet.") for name in model.layers() if name.startswith("unet.")]
    return {path: f"unet.{path}" for path in paths} | {
        theirs: f"unet.{ours}" for ours, theirs in ldm_paths(paths).items()
    }


def text_names(model: LoadedModel) -> dict[str, str]:
    """Module paths of text encoders to canonical layer names."""
    return _text_paths(name for name in model.layers() if is_text(name))


def other_names(model: LoadedModel, others: Iterable[str]) -> dict[str, str]:
    """All names that a parameter which is no layer weight may have in a file, to the one it has in ``others``."""
    own = list(others)
    modules = {name.rpartition(".")[0] for name in own if not is_text(name)}
    modules |= {name.removeprefix("unet.") for name in model.layers() if name.startswith("unet.")}
    theirs = ldm_paths(modules)
    unet = {name: name for name in own if not is_text(name)}
    for name in list(unet):
        module, _, leaf = name.rpartition(".")
        if module in theirs:
            unet[f"{theirs[module]}.{leaf}"] = name
    return unet | _text_paths(name for name in own if is_text(name))


def _text_paths(names: Iterable[str]) -> dict[str, str]:
    """Paths with and without transformers 4's ``text_model.``, and where there is one encoder only also as peft and
    transformers name it, by itself."""
    own = list(names)
    paths = {name: name for name in own} | {name.replace(".text_model.", ".", 1): name for name in own}
    if len({name.partition(".")[0] for name in own}) == 1:
        paths |= {path.partition(".")[2]: name for path, name in paths.items()}
    return paths


def is_beside(name: str) -> bool:
    """Whether a tensor is part of no erasure, whatever it holds."""
    return BESIDE.match(name) is not None
