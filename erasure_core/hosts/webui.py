"""The model that AUTOMATIC1111, Forge, Forge classic, reForge or Forge Neo has loaded.

A1111 keeps an LDM model and merges LoRAs lazily into its weights; the Forge family keeps a UNet and patchers around it.
Both run the UNet in the original layout, so that one adapter serves them. Everything that differs is in ``LdmHost`` and
``ForgeHost``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..delta import weight_of
from ..errors import ModelError
from ..model import Conditioning
from ..schedule import NoiseSchedule
from .autoencoder import checked_latents, checked_pictures, decoded_at_once
from .families import latent_side as family_side
from .ldm_modules import canonical_unet_names
from .token_rows import ends_of
from .training import frozen, recomputing
from .webui_hosts import ForgeHost, LdmHost, host_of
from .webui_text import TextSide, is_layer, text_sides
from .webui_training import OutOfPlace, make_normal, out_of_place, recomputed_blocks

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class WebuiModel:
    """A ``PromptModel`` and ``PictureModel`` around a web UI's loaded model.

    Args:
        sd_model: ``modules.shared.sd_model``.
        latent_side: side of the square latents to train on; by default what the model was made for.
        reading: the user's settings on which it hangs, beside the weights, what prompts are read as.

    Raises:
        ModelError: no model is loaded, or its kind is not supported.
    """

    def __init__(self, sd_model: Any, latent_side: int | None = None, reading: str = "") -> None:
        self.sd_model, self.reading = sd_model, reading
        self.host: LdmHost | ForgeHost = host_of(sd_model)
        self.unet = self.host.unet
        self.family = _family(sd_model, self.unet)
        self.texts: list[TextSide] = text_sides(sd_model)
        if self.family == "sdxl" and len(self.texts) == 1:
            raise ModelError("The loaded model is SDXL's refiner, which is not supported; load SDXL's base model.")
        self.schedule: NoiseSchedule = self.host.schedule()
        side = latent_side or family_side(self.family, self.schedule.prediction)
        self.latent_shape = (4, side, side)
        parameter = next(p for p in self.unet.parameters() if p.dim() > 1)
        self.device, self.dtype = self.host.device(parameter.device), parameter.dtype
        self._layers: dict[str, nn.Module] | None = None

    @property
    def title(self) -> str:
        """The checkpoint's name for people."""
        return title_of(getattr(self.sd_model, "sd_checkpoint_info", None))

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        return self.texts[0].tokenize(prompts)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.texts[0].detokenize(ids)

    def token_rows(self, rows: Sequence[Sequence[int]]) -> tuple[list[Tensor], tuple[int, ...]]:
        return [side.rows(rows).to(side.table.device) for side in self.texts], ends_of(rows)

    def token_tables(self) -> list[Tensor]:
        return [side.table for side in self.texts]

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        rows, ends = self.token_rows(self.tokenize(prompts))
        return self._encode(rows, ends)

    def encode_embeddings(self, embeddings: Sequence[Tensor], ends: Sequence[int]) -> Conditioning:
        length = embeddings[0].shape[1]
        with ExitStack() as stack:
            for side, vectors in zip(self.texts, embeddings, strict=True):
                stack.enter_context(side.reading(vectors))
            rows = [side.placed(ends, length) for side in self.texts]
            encoded = self._encode(rows, tuple(ends))
        # Longer only where every encoder reads whole rows.
        return Conditioning(encoded.context[:, :length], encoded.ends, encoded.pooled)

    def _encode(self, rows: Sequence[Tensor], ends: tuple[int, ...]) -> Conditioning:
        self.host.text_ready()
        length = min(row.shape[1] for row in rows)
        contexts, pooled = [], None
        with self._precision():
            for side, ids in zip(self.texts, rows, strict=True):
                context, pooled = side.encode(ids.to(self.device))
                contexts.append(context[:, :length].to(self.device))
        return Conditioning(torch.cat(contexts, dim=-1).float(), ends, None if pooled is None else pooled.float())

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.host.unet_ready()
        extra: dict[str, Any] = self.host.unet_options()
        if conditioning.pooled is not None:
            extra["y"] = torch.cat([conditioning.pooled, _size_features(latents)], dim=1).to(self.dtype)
        with self._precision(), OutOfPlace():
            out = self.unet(latents.to(self.dtype), t, context=conditioning.context.to(self.dtype), **extra)
        prediction: Tensor = out
        return prediction.float()

    def _precision(self) -> Any:
        """The host's own half precision: masters of the deltas stay float32."""
        if self.dtype not in (torch.float16, torch.bfloat16):
            return nullcontext()  # torch.autocast refuses some devices, switched off as well
        try:
            return torch.autocast(self.device.type, dtype=self.dtype)
        except (RuntimeError, AssertionError):  # Apple's with an older torch, and DirectML's, have none
            return self.host.precision()

    def layers(self) -> dict[str, nn.Module]:
        if self._layers is None:
            paths = {path: layer for path, layer in self.unet.named_modules() if is_layer(layer)}
            names = canonical_unet_names(path for path, _ in self.unet.named_modules() if path)
            self._layers = {f"unet.{names[path]}": layer for path, layer in paths.items() if path in names}
            for side in self.texts:
                self._layers |= dict(side.layers())
        return self._layers

    def base_weight(self, name: str) -> Tensor:
        return self.host.base_parameter(self.layers()[name], "weight")

    def weight(self, name: str) -> Tensor:
        return weight_of(self.layers()[name])

    def other_parameters(self) -> dict[str, Tensor]:
        """The parameters that are no layer weights (biases, norms, embeddings), of the UNet by diffusers' names, of
        text encoders by canonical ones."""
        paths = canonical_unet_names(path for path, _ in self.unet.named_modules() if path)
        weights = {f"{name.removeprefix('unet.')}.weight" for name in self.layers()}
        found: dict[str, Tensor] = {
            f"{paths[path]}.{leaf}": parameter
            for path, leaf, parameter in ((*key.rpartition(".")[::2], p) for key, p in self.unet.named_parameters())
            if path in paths
        }
        for side in self.texts:
            found |= side.parameters()
        return {name: parameter for name, parameter in found.items() if name not in weights}

    @contextmanager
    def trainable(self, checkpointing: bool = False) -> Iterator[None]:
        """As of ``LoadedModel``; the host's LoRAs and our erasures are taken off first.

        Raises:
            ModelError: a state of the host in which training would be wrong; nothing was changed.
        """
        self._check_trainable()
        self.host.clean()
        networks = [self.unet, *(side.network for side in self.texts)]
        with torch.inference_mode(False), torch.enable_grad():
            self.host.text_ready()
            self.host.unet_ready()
            make_normal(networks)
            with frozen(networks), ExitStack() as stack:
                if checkpointing:
                    stack.enter_context(recomputing(recomputed_blocks(self.unet), out_of_place))
                yield

    def _check_trainable(self) -> None:
        reason = self.host.untrainable()
        channels = _channels(self.unet)
        weights = [p for p in self.unet.parameters() if p.dim() > 1]
        kinds = {p.dtype for p in weights}
        if not kinds <= set(FLOATS) or is_packed(self.unet):
            reason = "its weights are quantised; load it in 16 or 32 bits"
        elif channels != 4:
            reason = (
                f"it reads {channels} channels, as inpainting and depth models do; load the plain model, and apply the "
                "file here"
            )
        elif len({p.device for p in weights}) > 1:
            reason = "its weights lie on several devices; start the web UI without low-memory options"
        elif "forward" in self.unet.__dict__:
            reason = "another extension has replaced its forward function; disable that extension"
        if reason:
            raise ModelError(f"The loaded model cannot be trained, nor paint pictures again, now: {reason}.")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        pieces = decoded_at_once(latents.to(self.device))
        pictures = torch.cat([self.host.decode(piece).float().cpu() for piece in pieces])
        return checked_pictures((pictures + 1) * 127.5, self, self.host.vae_cure)

    @torch.no_grad()
    def latents_of(self, pictures: Tensor) -> Tensor:
        """Clean latents [B, C, h, w] of pictures, uint8 [B, 3, H, W]; what ``decode`` turns back."""
        scaled = (pictures.float() / 127.5 - 1).to(self.device)
        latents = torch.cat([self.host.encode(piece).float() for piece in torch.split(scaled, 1)])
        return checked_latents(latents, self, self.host.vae_cure)


def is_packed(network: nn.Module) -> bool:
    """Whether weights are stored in other shapes than they have (nf4, gguf)."""
    return any(hasattr(p, "gguf_cls") or hasattr(p, "bnb_quantized") for p in network.parameters())


def title_of(checkpoint: Any) -> str:
    """Name for people of what a host knows of a checkpoint."""
    return str(getattr(checkpoint, "name_for_extra", None) or getattr(checkpoint, "title", "unnamed"))


def _family(sd_model: Any, unet: nn.Module) -> str:
    """``sd1``, ``sd2`` or ``sdxl``.

    Raises:
        ModelError: it is none of these.
    """
    families = [family for family in ("sdxl", "sd2", "sd1") if getattr(sd_model, f"is_{family}", False)]
    into = next((layer for path, layer in unet.named_modules() if path.endswith(".proj_in")), None)
    if not families or not isinstance(into, nn.Module) or not hasattr(unet, "input_blocks"):
        raise ModelError(
            "The loaded model is of a kind that is not supported; load an SD1.x, SD2.x or SDXL checkpoint."
        )
    if families[0] == "sdxl":
        return "sdxl"
    # Forge classic and reForge take SD2.x for SD1.x; only the former's blocks begin with a linear layer.
    weight = into._parameters["weight"]
    return "sd2" if weight is not None and weight.dim() == 2 else "sd1"


def _channels(unet: nn.Module) -> int:
    """What the network reads: 4 channels, or more where a picture to be changed comes along."""
    first = next(p for p in unet.parameters() if p.dim() == 4)
    return int(first.shape[1])


def _size_features(latents: Tensor) -> Tensor:
    """SDXL's size conditioning [B, 1536]: sines of original size, crop and target size (Podell et al. 2023)."""
    height, width = (8 * side for side in latents.shape[-2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], device=latents.device, dtype=torch.float32)
    rates = torch.exp(-math.log(10000) * torch.arange(128, device=latents.device) / 128)
    angles = sizes[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1).flatten().expand(len(latents), -1)
