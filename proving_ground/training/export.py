"""Writes the trained parts as a Stable Diffusion folder that diffusers, ComfyUI and A1111 tools read, in fp16."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel, PretrainedConfig

from ..judge import JudgeNet
from ..tokens import MODEL_DIR
from . import autoencoder, clip, loop, unet
from .latents import latent_scale
from .resume import PART_STEPS, STEPS_FILE
from .state import load_average, steps_done

SUMS = "SHA256SUMS"
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "feature_extractor": [None, None],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    broken = [name for name, tensor in halves.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"not finite in half precision: {', '.join(broken[:5])}")
    return halves


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_transformers_model(folder: Path, config: PretrainedConfig, name: str, tensors: dict[str, Tensor]) -> None:
    """Write config and weights. The config asks for float32, diffusers' default, else transformers 5 loads half."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {**config.to_diff_dict(), "architectures": [name], "torch_dtype": "float32"})
    save_file(_half(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def _with_prefix(prefix: str, model: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in model.state_dict().items()}


def write_clip(folder: Path, model: CLIPModel) -> None:
    """Write both sides of the CLIP model.

    The text keys carry the prefix ``text_model.``, which transformers 5 no longer writes: transformers 4 would load a
    file without it with random weights and only a warning, while version 5 reads both.
    """
    text = _with_prefix("text_model", model.text_model)
    _write_transformers_model(folder / "text_encoder", model.config.text_config, "CLIPTextModel", text)
    vision = _with_prefix("vision_model", model.vision_model)
    vision |= _with_prefix("visual_projection", model.visual_projection)
    name = "CLIPVisionModelWithProjection"
    _write_transformers_model(folder / "image_encoder", model.config.vision_config, name, vision)
    _write_json(folder / "image_encoder" / "preprocessor_config.json", clip.PICTURE_CONFIG)
    projection = {"text_projection.weight": model.text_projection.weight, "logit_scale": model.logit_scale}
    save_file(_half(projection), folder / "text_projection.safetensors")


def write_sums(folder: Path) -> None:
    """Write the hashes of all files of a folder but its text in the format of ``sha256sum``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (SUMS, "README.md"))
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _check_complete() -> None:
    missing = [f"{part} ({steps_done(part)} of {steps} steps)" for part, steps in PART_STEPS.items()
               if steps_done(part) < steps]  # fmt: skip
    if missing:
        raise RuntimeError(f"not trained to the end: {', '.join(missing)}; --partial exports what there is")


def export(folder: Path = MODEL_DIR, partial: bool = False) -> None:
    """Write the running averages of all parts into a diffusers folder.

    Args:
        folder: where to; created if missing.
        partial: accept parts whose training has not ended, and a missing judge.
    """
    if not partial:
        _check_complete()
    text_and_vision, pictures, denoiser = clip.load_clip(), autoencoder.new_autoencoder(), unet.new_unet()
    load_average("autoencoder", pictures)
    load_average("unet", denoiser)
    pictures.register_to_config(scaling_factor=latent_scale())
    if folder.resolve() != MODEL_DIR.resolve():
        shutil.copytree(MODEL_DIR / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    write_clip(folder, text_and_vision)
    pictures.half().save_pretrained(folder / "vae")
    denoiser.half().save_pretrained(folder / "unet")
    scheduler = DDIMScheduler(**unet.SCHEDULE, clip_sample=False, steps_offset=1, timestep_spacing="trailing")
    scheduler.save_pretrained(folder / "scheduler")
    _write_json(folder / "model_index.json", MODEL_INDEX)
    if (loop.STATE_DIR / "judge.pt").exists():
        net = JudgeNet()
        load_average("judge", net)
        save_file(_half(net.state_dict()), folder / "judge.safetensors")
    _write_json(folder / STEPS_FILE, {part: steps_done(part) for part in PART_STEPS})
    write_sums(folder)
