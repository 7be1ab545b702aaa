"""Stable Diffusion models in diffusers' folder layout: the stand-alone host behind the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, PromptTooLong
from ..model import Conditioning
from ..schedule import NoiseSchedule
from .ldm_checkpoint import ModelParts, read_checkpoint

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class DiffusersModel:
    """A ``PictureModel`` made of diffusers and transformers modules.

    Args:
        unet: ``UNet2DConditionModel``.
        text_encoders: ``CLIPTextModel``, for SDXL also ``CLIPTextModelWithProjection``.
        tokenizers: one for each text encoder.
        schedule: noise schedule and prediction type.
        vae: ``AutoencoderKL``; ``None`` where no pictures are wanted.
    """

    def __init__(
        self,
        unet: nn.Module,
        text_encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        schedule: NoiseSchedule,
        vae: nn.Module | None = None,
    ) -> None:
        self.unet, self.text_encoders, self.tokenizers, self.vae = unet, list(text_encoders), list(tokenizers), vae
        self.schedule = schedule
        config: Any = unet.config
        self.is_sdxl = config.addition_embed_type == "text_time"
        self.family = "sdxl" if self.is_sdxl else "sd2" if config.use_linear_projection else "sd1"
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (config.in_channels, height, width)
        parameter = next(unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._layers: dict[str, nn.Module] | None = None

    @classmethod
    def load(
        cls, path: Path, device: str = "auto", pictures: bool = True, prediction: str | None = None
    ) -> DiffusersModel:
        """Load a model offline.

        Args:
            path: folder with ``model_index.json``, or a .safetensors checkpoint in the original (LDM) layout.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, …
            pictures: whether to load the autoencoder too.
            prediction: ``epsilon`` or ``v_prediction`` for a checkpoint that does not tell; ``None`` finds out.

        Raises:
            ModelError: missing, incomplete or corrupt, or a kind of model that is not supported.
            InvalidFile: the checkpoint is no safetensors file.
        """
        parts = _read(Path(path), _device(device), pictures, prediction)
        return cls(parts.unet, parts.text_encoders, parts.tokenizers, parts.schedule, parts.vae)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        contexts: list[Tensor] = []
        pooled: Tensor | None = None
        ends: tuple[int, ...] = ()
        for encoder, tokenizer in zip(self.text_encoders, self.tokenizers, strict=True):
            ids, ends = _token_ids(tokenizer, prompts)
            out = encoder(ids.to(self.device), output_hidden_states=self.is_sdxl)
            if self.is_sdxl:
                # SDXL reads the layer before the last of both encoders, without the final norm.
                contexts.append(out.hidden_states[-2])
                pooled = getattr(out, "text_embeds", None)
            else:
                contexts.append(out.last_hidden_state)
        return Conditioning(torch.cat(contexts, dim=-1), ends, pooled)

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        added = None
        if self.is_sdxl:
            height, width = (8 * side for side in latents.shape[-2:])
            sizes = latents.new_tensor([height, width, 0, 0, height, width], dtype=self.dtype)
            added = {"text_embeds": conditioning.pooled, "time_ids": sizes.expand(len(latents), -1)}
        out = self.unet(
            latents.to(self.dtype), t, conditioning.context.to(self.dtype), added_cond_kwargs=added, return_dict=False
        )
        prediction: Tensor = out[0]
        return prediction.float()

    def layers(self) -> dict[str, nn.Module]:
        if self._layers is None:
            self._layers = dict(_linear_layers("unet", self.unet))
            for prefix, encoder in zip(TEXT_ENCODERS, self.text_encoders, strict=False):
                self._layers |= dict(_linear_layers(prefix, encoder))
        return self._layers

    @contextmanager
    def trainable(self, checkpointing: bool = False) -> Iterator[None]:
        modules = [self.unet, *self.text_encoders]
        flags = [(p, p.requires_grad) for module in modules for p in module.parameters()]
        modes = [module.training for module in modules]
        unet: Any = self.unet
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            for module in modules:
                module.eval()
            if checkpointing:
                unet.enable_gradient_checkpointing()
            yield
        finally:
            if checkpointing:
                unet.disable_gradient_checkpointing()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        if vae is None:
            raise ModelError("This model was loaded without its autoencoder, so it cannot show pictures.")
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        pictures = vae.decode(scaled.to(next(vae.parameters()).dtype)).sample
        levels: Tensor = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
        return levels.to(torch.uint8).cpu()


def _token_ids(tokenizer: Any, prompts: Sequence[str]) -> tuple[Tensor, tuple[int, ...]]:
    """Padded ids [B, L] and for each prompt the place of its end token.

    Raises:
        PromptTooLong: the prompt would be cut.
    """
    limit = tokenizer.model_max_length
    rows = tokenizer(list(prompts)).input_ids
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > limit:
            raise PromptTooLong(
                f"The prompt {prompt[:60]!r}… has {len(row) - 2} tokens, but only {limit - 2} are read. Shorten it."
            )
    padded = tokenizer(list(prompts), padding="max_length", max_length=limit, return_tensors="pt").input_ids
    return padded, tuple(len(row) - 1 for row in rows)


def _linear_layers(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            # transformers 5 dropped this prefix inside CLIPTextModel; names in files keep it.
            if prefix != "unet" and not name.startswith(("text_model.", "text_projection")):
                name = f"text_model.{name}"
            yield f"{prefix}.{name}", layer


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"The device {wanted!r} cannot be used ({str(error).splitlines()[0]}).") from error
    return device


def _dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def _schedule(folder: Path) -> NoiseSchedule:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    start, end, steps = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    if config.get("beta_schedule", "linear") == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif config.get("beta_schedule", "linear") == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise ModelError(f"{folder}: the noise schedule {config['beta_schedule']!r} is not supported.")
    alphas = torch.cumprod(1 - betas, dim=0)
    return NoiseSchedule.from_alphas_cumprod(alphas, config.get("prediction_type", "epsilon"))


def _read(path: Path, device: torch.device, pictures: bool, prediction: str | None) -> ModelParts:
    if not path.exists():
        raise ModelError(f"The model {path} does not exist; give a model folder or a .safetensors checkpoint.")
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{error.name} is missing; install it with: pip install concept-erasure[standalone]"
        ) from error
    dtype = _dtype(device)
    if path.is_file():
        parts = read_checkpoint(path, dtype, prediction, pictures)
    elif (path / "model_index.json").is_file():
        parts = _read_folder(path, dtype, pictures)
    else:
        raise ModelError(f"The model {path} is not a diffusers model folder: it has no model_index.json.")
    for module in (parts.unet, *parts.text_encoders, *([parts.vae] if parts.vae is not None else [])):
        module.to(device).eval()
    return parts


def _read_folder(folder: Path, dtype: torch.dtype, pictures: bool) -> ModelParts:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    options = {"torch_dtype": dtype, "local_files_only": True}
    no_accelerate = {**options, "low_cpu_mem_usage": False}
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **no_accelerate)
        encoders = [CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **options)]
        tokenizers = [CLIPTokenizer.from_pretrained(folder / "tokenizer")]
        if (folder / "text_encoder_2").is_dir():
            encoders.append(CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2", **options))
            tokenizers.append(CLIPTokenizer.from_pretrained(folder / "tokenizer_2"))
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **no_accelerate) if pictures else None
        return ModelParts(unet, encoders, tokenizers, _schedule(folder), vae)
    except ModelError:
        raise
    except Exception as error:  # the libraries raise dozens of types for a damaged folder
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"The model {folder} is incomplete or damaged ({first}); get a fresh copy.") from error
