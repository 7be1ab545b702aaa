"""What A1111 and the Forge family do differently with a loaded model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..schedule import NoiseSchedule
from .webui_swap import lora_module, original_of, restore_all
from .webui_training import make_normal


def host_of(sd_model: Any) -> LdmHost | ForgeHost:
    """The host's ways with this model.

    Raises:
        ModelError: no model is loaded.
    """
    if getattr(sd_model, "forge_objects", None) is not None:
        return ForgeHost(sd_model)
    if isinstance(getattr(getattr(sd_model, "model", None), "diffusion_model", None), nn.Module):
        return LdmHost(sd_model)
    raise ModelError("No model is loaded yet; choose a checkpoint and generate a picture, then try again.")


class LdmHost:
    """A1111: an LDM or SGM model whose Lora extension merges into the weights at each module's next forward."""

    vae_cure = "choose another VAE under Settings, VAE, or get a fresh copy of it"

    def __init__(self, sd_model: Any) -> None:
        self.sd_model = sd_model
        unet = sd_model.model.diffusion_model
        assert isinstance(unet, nn.Module)
        self.unet: nn.Module = unet

    def unet_now(self) -> Any:
        """The UNet that the model holds now; a host may exchange it."""
        return self.sd_model.model.diffusion_model

    def device(self, weights: torch.device) -> torch.device:
        return weights

    def schedule(self) -> NoiseSchedule:
        model = self.sd_model
        # alphas_cumprod may be down-cast or rescaled by settings; the original is what the model was trained with.
        alphas = getattr(model, "alphas_cumprod_original", None)
        return NoiseSchedule.from_alphas_cumprod(
            model.alphas_cumprod if alphas is None else alphas, _prediction(getattr(model, "parameterization", "eps"))
        )

    def unet_options(self) -> dict[str, Any]:
        return {}

    def precision(self) -> AbstractContextManager[None]:
        """The host's way to compute in 16 bits where torch has none of its own."""
        from modules import devices

        casting: AbstractContextManager[None] = devices.autocast()
        return casting

    def text_ready(self) -> None:
        """A1111 without low-memory options has everything in place."""

    def unet_ready(self) -> None:
        """As ``text_ready``."""

    def clean(self) -> None:
        """Take LoRAs and erasures off all layers."""
        lora = lora_module()
        if lora is not None:
            lora.load_networks([], [], [], [])
        restore_all(self.sd_model)

    def base_parameter(self, module: nn.Module, leaf: str) -> Tensor:
        return original_of(module, leaf)

    def has_other_unet(self) -> bool:
        """Whether the host computes with another network (SD Unet: TensorRT) in the place of its model's own."""
        from modules import sd_unet

        return sd_unet.current_unet is not None

    def untrainable(self) -> str:
        """Why training would be wrong now, or an empty text."""
        from modules import shared

        if getattr(self.sd_model, "lowvram", False):
            return "the web UI runs with --medvram or --lowvram; start it without"
        if self.has_other_unet():
            return "an alternative UNet is active; choose 'None' under Settings, SD Unet, and generate once"
        if shared.loaded_hypernetworks:
            return "a hypernetwork is loaded; remove it from the prompt and generate once"
        return ""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] from -1 to 1."""
        return self._by_vae(self.sd_model.decode_first_stage, latents)

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures [B, 3, H, W] from -1 to 1; the likeliest ones, not drawn by chance."""
        return self._by_vae(self._likeliest, pictures)

    def _likeliest(self, pictures: Tensor) -> Tensor:
        model = self.sd_model
        if getattr(model, "is_sdxl", False):  # its first stage would draw by chance
            first = model.first_stage_model
            mean, _ = first.quant_conv(first.encoder(pictures)).chunk(2, dim=1)
            likeliest: Tensor = mean * model.scale_factor
            return likeliest
        latents: Tensor = model.get_first_stage_encoding(model.encode_first_stage(pictures).mode())
        return latents

    def _by_vae(self, work: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """What the autoencoder makes of something. Some overflow in the host's 16 bits: then it is done once more in
        32, as the host does it in a generation, and the autoencoder is put back as it was."""
        from modules import devices

        usual = devices.dtype_vae
        with devices.without_autocast():
            found = work(given.to(usual))
            if usual == torch.float32 or torch.isfinite(found).all():
                return found
            try:
                devices.dtype_vae = torch.float32  # with --upcast-sampling the host casts to it once more
                self.sd_model.first_stage_model.to(torch.float32)
                return work(given.float())
            finally:
                devices.dtype_vae = usual
                self.sd_model.first_stage_model.to(usual)


class ForgeHost:
    """Forge and its descendants: a UNet wrapped by patchers, moved to the device when it is needed.

    The host makes weights in inference mode, so they must be moved in it too: moved in another mode, a weight is half
    an inference tensor, which nobody can read again ("Inference tensors do not track version counter").
    """

    vae_cure = "start the web UI with --vae-in-fp32, or choose another VAE"

    def __init__(self, sd_model: Any) -> None:
        self.sd_model = sd_model
        network = sd_model.forge_objects.unet.model.diffusion_model
        assert isinstance(network, nn.Module)
        self.unet: nn.Module = network
        self._places: dict[int, tuple[nn.Module, nn.Module, str]] = {}

    def unet_now(self) -> Any:
        """The UNet that the model holds now."""
        return self.sd_model.forge_objects.unet.model.diffusion_model

    def device(self, weights: torch.device) -> torch.device:
        # Weights may rest in main memory; what counts is where they will be when they are used.
        return torch.device(self.sd_model.forge_objects_original.unet.load_device)

    def schedule(self) -> NoiseSchedule:
        k_model = self.sd_model.forge_objects.unet.model
        sampling: Any = getattr(k_model, "predictor", None)
        if sampling is None:
            sampling = k_model.model_sampling
            # Forge classic exchanges this object for v-prediction models and leaves the model's own type as it was.
            kinds = {parent.__name__ for parent in type(sampling).__mro__}
            kind = next((kind for kind in ("V_PREDICTION", "EPS") if kind in kinds), "unknown")
        else:
            kind = str(sampling.prediction_type)
        sigmas = torch.as_tensor(sampling.sigmas).detach().cpu().double()
        prediction = _prediction(kind)
        # A checkpoint's mark. These hosts stretch the schedule for each generation and put it back behind it.
        marks = (getattr(self.sd_model, "model_config", None), self.sd_model)
        marked = any(getattr(one, "ztsnr", False) for one in marks)
        return NoiseSchedule.from_alphas_cumprod(
            1 / (sigmas**2 + 1), prediction, zero_terminal=marked and prediction == "v_prediction"
        )

    def precision(self) -> AbstractContextManager[None]:
        """The host's layers cast by themselves."""
        return nullcontext()

    def unet_options(self) -> dict[str, Any]:
        # Forge writes into this dictionary, whose default all calls share.
        return {"transformer_options": {}}

    @torch.inference_mode()
    def load(self, patcher: Any) -> None:
        """Have the host put a patcher's model, with its patches, where it will run."""
        _memory().load_model_gpu(patcher)

    def text_ready(self) -> None:
        self._bring(self.sd_model.forge_objects_original.clip.patcher)

    def unet_ready(self) -> None:
        self._bring(self.sd_model.forge_objects_original.unet)

    def _bring(self, patcher: Any) -> None:
        """Have a network where it runs. To ask the host for one that is there would have it make room for a picture: in
        the middle of a training it would move the other network out, and back at the next call."""
        if not any(entry.model is patcher for entry in _memory().current_loaded_models):
            self.load(patcher)
        if not torch.is_inference_mode_enabled():
            make_normal([patcher.model])  # what the host has moved is of inference mode again: no training can read it

    @torch.inference_mode()
    def clean(self) -> None:
        """Take every patch off the weights; the host puts those it needs back at its next generation."""
        # Unloaded first: the host patches when it loads, and takes a patcher that it knows as loaded for patched.
        _memory().unload_all_models()
        for patcher in (self.sd_model.forge_objects_original.unet, self.sd_model.forge_objects_original.clip.patcher):
            loader = getattr(patcher, "lora_loader", None)
            if loader is not None:
                loader.refresh(lora_patches={}, offload_device=patcher.offload_device)

    def base_parameter(self, module: nn.Module, leaf: str) -> Tensor:
        found = self._place(module)
        if found is not None:
            _, root, path = found
            backups = [backup for patched, backup in self._backup_tables() if patched is root]
            weight = next((backup[key] for backup in backups if (key := f"{path}.{leaf}") in backup), None)
            if weight is not None:
                original: Tensor = getattr(weight, "weight", weight)
                return original
        return _parameter(module, leaf)

    def _place(self, module: nn.Module) -> tuple[nn.Module, nn.Module, str] | None:
        """The module, what the host patches that it is a part of, and its path there. Looked up once for all modules:
        to name them takes as long as to check them."""
        found = self._places.get(id(module))
        if found is None or found[0] is not module:
            originals = self.sd_model.forge_objects_original
            self._places = {
                id(part): (part, root, path)
                for root in (originals.unet.model, originals.clip.patcher.model)
                for path, part in root.named_modules()
            }
            found = self._places.get(id(module))
        return found

    def _backup_tables(self) -> list[tuple[nn.Module, dict[str, Any]]]:
        originals = self.sd_model.forge_objects_original
        roots = [originals.unet.model, originals.clip.patcher.model]
        loaders = [(root, root.lora_loader.backup) for root in roots if hasattr(root, "lora_loader")]
        if loaders:
            return loaders
        loaded = [entry.model for entry in _memory().current_loaded_models]
        return [(p.model, p.backup) for p in loaded if p is not None and any(p.model is root for root in roots)]

    def untrainable(self) -> str:
        """Why training would be wrong now, or an empty text."""
        return ""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] from -1 to 1."""
        pictures: Tensor = self.sd_model.decode_first_stage(latents)
        return pictures

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures [B, 3, H, W] from -1 to 1."""
        latents: Tensor = self.sd_model.encode_first_stage(pictures)
        return latents


def _memory() -> Any:
    """The module that moves models, by whichever name the host gives it."""
    for name in ("backend.memory_management", "ldm_patched.modules.model_management"):
        if name in sys.modules:
            return sys.modules[name]
    raise ModelError("This host manages its models in an unknown way; update this extension.")


def _parameter(module: nn.Module, leaf: str) -> Tensor:
    parameter = module._parameters[leaf]
    assert parameter is not None
    return parameter


def _prediction(name: str) -> str:
    """Our name of a host's prediction type.

    Raises:
        ModelError: a type that no UNet of a supported family has.
    """
    names = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
    if name.lower() not in names:
        raise ModelError(f"The loaded model predicts {name!r}; only epsilon and v-prediction models are supported.")
    return names[name.lower()]
