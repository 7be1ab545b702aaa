"""Reads one-file Stable Diffusion checkpoints (.safetensors, original LDM layout) into diffusers modules, offline."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import ModelError, is_out_of_memory
from ..safe_files import read_header
from ..schedule import NoiseSchedule
from . import ldm_config, ldm_keys
from .families import latent_side
from .ldm_keys import CLIP_SD1, CLIP_SDXL, OPEN_CLIP_SD2, OPEN_CLIP_SDXL

TOKENIZER = Path(__file__).parent.parent / "data" / "clip_tokenizer"
"""The CLIP byte-pair vocabulary, which all three families use."""
EDM_MARKS = frozenset({"edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"})
"""Tensors by which models of EDM (Karras et al. 2022) are known, such as Playground 2.5 and CosXL."""
MODELSPEC_NAMES = ("prediction_type", "predict_key")
"""Under which the metadata say what is predicted, as kohya's scripts and as ComfyUI write it."""
V_PROBE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@dataclass(frozen=True)
class ModelParts:
    """The modules of a model; ``vae`` is ``None`` where no pictures are wanted."""

    unet: nn.Module
    text_encoders: list[nn.Module]
    tokenizers: list[Any]
    schedule: NoiseSchedule
    vae: nn.Module | None


def read_checkpoint(path: Path, dtype: torch.dtype, prediction: str | None, pictures: bool) -> ModelParts:
    """Build the modules of a checkpoint file.

    Args:
        path: a .safetensors file.
        dtype: of the modules.
        prediction: ``epsilon`` or ``v_prediction``; ``None`` decides by ``prediction_of``.
        pictures: whether to build the autoencoder too.

    Raises:
        ModelError: no Stable Diffusion checkpoint of a supported family, or tensors are missing.
        InvalidFile: not a safetensors file, or damaged.
    """
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    shapes = {key: torch.Size(entry["shape"]) for key, entry in header.items()}
    try:
        family = ldm_config.family_of(shapes)
        with safe_open(path, framework="pt") as file:
            return _build(_Source(file.get_tensor, shapes, dtype), family, metadata, prediction, pictures)
    except ModelError as error:
        raise ModelError(f"The model {path} cannot be used: {error}.") from error
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, StopIteration, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        # Behind torch's heading "Error(s) in loading state_dict for …:" stands what is wrong.
        lines = [line.strip() for line in str(error).splitlines() if not line.endswith(":")]
        first = (lines or [type(error).__name__])[0]
        raise ModelError(f"The model {path} is incomplete or damaged ({first}); get a fresh copy.") from error


@dataclass(frozen=True)
class _Source:
    """Tensors on demand, so that a 7 GB file is not in memory twice."""

    get: Callable[[str], Tensor]
    shapes: Mapping[str, torch.Size]
    dtype: torch.dtype

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): self.get(key) for key in self.shapes if key.startswith(prefix)}

    def fill(self, module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> nn.Module:
        """Load tensors into a module and make it ready for inference in the wanted type.

        Raises:
            TypeError: one is made of whole or complex numbers, which would become weights without a word.
        """
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() and not name.endswith("position_ids"):
                raise TypeError(f"it holds {name} as {tensor.dtype}")
        typed = {name: tensor.to(dtype or self.dtype) for name, tensor in tensors.items()}
        module.load_state_dict(typed, strict=True, assign=True)
        return module.eval().requires_grad_(False)


def _build(
    source: _Source, family: str, metadata: Mapping[str, Any], prediction: str | None, pictures: bool
) -> ModelParts:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    chosen = prediction or prediction_of(source, family, metadata)
    size = _latent_size(metadata, family, chosen)
    unet = _empty(UNet2DConditionModel, sample_size=size, **ldm_config.unet_config(source.shapes, family))
    keys = ldm_keys.unet_keys(unet.state_dict())
    source.fill(unet, {name: source.get(key) for name, key in keys.items()})
    vae = None
    if pictures:
        config = ldm_config.vae_config(source.shapes, family)
        vae = _empty(AutoencoderKL, sample_size=8 * size, **config)
        keys = ldm_keys.vae_keys(vae.state_dict(), len(config["block_out_channels"]))
        tensors = {name: ldm_keys.as_vae_tensor(key, source.get(key)) for name, key in keys.items()}
        source.fill(vae, tensors, torch.float32)  # SDXL's autoencoder overflows in float16
    encoders = _text_encoders(source, family)
    return ModelParts(unet, encoders, _tokenizers(family), _schedule(chosen, "ztsnr" in source.shapes), vae)


def _empty(kind: Any, **config: Any) -> Any:
    """A module without memory for its weights: they come from the file."""
    with torch.device("meta"):
        return kind(**config)


def _text_encoders(source: _Source, family: str) -> list[nn.Module]:
    if family == "sd1":
        return [_clip(source, CLIP_SD1)]
    if family == "sd2":
        # SD2 reads the layer before the last, after the final norm: diffusers leaves the last layer out.
        return [_open_clip(source, OPEN_CLIP_SD2, skipped=1, projected=False)]
    return [_clip(source, CLIP_SDXL), _open_clip(source, OPEN_CLIP_SDXL, skipped=0, projected=True)]


def _text_model(source: _Source, tensors: dict[str, Tensor], config: dict[str, Any], projected: bool) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    wanted = _empty(kind, config=CLIPTextConfig(**config)).state_dict()
    if not projected:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("text_model.")}
        if "text_model.final_layer_norm.weight" not in wanted:
            # transformers 5 dropped this prefix inside CLIPTextModel.
            tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for name, tensor in wanted.items():  # before memory is taken for what a file only claims
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise KeyError(name)
    return source.fill(kind(CLIPTextConfig(**config)), {name: tensors[name] for name in wanted})


def _clip(source: _Source, prefix: str) -> nn.Module:
    return _text_model(source, source.under(prefix), ldm_config.text_config(source.shapes, prefix), projected=False)


def _open_clip(source: _Source, prefix: str, skipped: int, projected: bool) -> nn.Module:
    config = ldm_config.text_config(source.shapes, prefix)
    config["num_hidden_layers"] -= skipped
    tensors = ldm_keys.from_open_clip(source.under(prefix), config["num_hidden_layers"])
    return _text_model(source, tensors, config, projected)


def _tokenizers(family: str) -> list[Any]:
    from transformers import CLIPTokenizer

    def tokenizer(pad: str | None = None) -> Any:
        return CLIPTokenizer.from_pretrained(TOKENIZER, **({"pad_token": pad} if pad else {}))

    # open_clip pads with token 0, "!"; OpenAI's CLIP with the end token.
    return {"sd1": [tokenizer()], "sd2": [tokenizer("!")], "sdxl": [tokenizer(), tokenizer("!")]}[family]


def _prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors with the prefix that transformers 5 dropped inside CLIPTextModel."""
    whole = ("text_model.", "text_projection.")
    return {name if name.startswith(whole) else f"text_model.{name}": tensor for name, tensor in state.items()}


def _latent_size(metadata: Mapping[str, Any], family: str, prediction: str) -> int:
    """Side of the latents the model was made for, from ``modelspec.resolution`` or as its family's are."""
    width = re.fullmatch(r"([0-9]{1,4})x[0-9]{1,4}", str(metadata.get("modelspec.resolution", "")))
    return int(width[1]) // 8 if width and int(width[1]) >= 8 else latent_side(family, prediction)


def prediction_of(source: _Source, family: str, metadata: Mapping[str, Any]) -> str:
    """``epsilon`` or ``v_prediction``. Shapes do not tell, so hosts look at marks that trainers leave.

    SDXL v-prediction models carry an empty tensor ``v_pred``; trainers also write ``v`` into the metadata. That these
    say ``epsilon`` tells less, since that is written where nobody said anything. SD2.1-v differs from SD2.1-base in one
    norm's bias, whose spread is above 0.09 in the v model: that is how ComfyUI decides.

    Raises:
        ModelError: the model is marked as one that reads its noise in yet another way.
    """
    if not EDM_MARKS.isdisjoint(source.shapes):
        raise ModelError("its noise schedule (EDM) is not supported")
    if "v_pred" in source.shapes or "v" in (metadata.get(f"modelspec.{name}") for name in MODELSPEC_NAMES):
        return "v_prediction"
    if family == "sd2" and V_PROBE in source.shapes:
        spread = float(source.get(V_PROBE).float().std(unbiased=False))
        return "v_prediction" if spread > 0.09 else "epsilon"
    return "epsilon"


def _schedule(prediction: str, zero_terminal: bool) -> NoiseSchedule:
    if zero_terminal and prediction == "epsilon":
        raise ModelError(
            "it is marked as one that starts from pure noise (zero terminal SNR), which a model that predicts epsilon "
            "cannot; if it predicts v, say so"
        )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return NoiseSchedule.from_alphas_cumprod(torch.cumprod(1 - betas, dim=0), prediction, zero_terminal)


def checkpoint_tensors(parts: ModelParts) -> dict[str, Tensor]:
    """A model's tensors by the keys of the original layout, as ``read_checkpoint`` reads them.

    SD2's last text layer is missing: it is never used, so no model here holds it, but a whole checkpoint must.
    """
    unet: Any = parts.unet
    state = unet.state_dict()
    result = {key: state[name] for name, key in ldm_keys.unet_keys(state).items()}
    if parts.vae is not None:
        vae: Any = parts.vae
        state = vae.state_dict()
        for name, key in ldm_keys.vae_keys(state, len(vae.config.block_out_channels)).items():
            result[key] = ldm_keys.as_checkpoint_vae_tensor(key, state[name])
    texts = [_prefixed(encoder.state_dict()) for encoder in parts.text_encoders]
    if len(texts) == 2:
        result |= {CLIP_SDXL + name: tensor for name, tensor in texts[0].items()}
        result |= {OPEN_CLIP_SDXL + name: tensor for name, tensor in ldm_keys.to_open_clip(texts[1]).items()}
    elif unet.config.use_linear_projection:
        result |= {OPEN_CLIP_SD2 + name: tensor for name, tensor in ldm_keys.to_open_clip(texts[0]).items()}
    else:
        result |= {CLIP_SD1 + name: tensor for name, tensor in texts[0].items()}
    return result
