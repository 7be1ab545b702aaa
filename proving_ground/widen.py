"""The wide twin: the bundled model in the shapes of SD1.5's layers, computing the same function.

Hosts recognise a checkpoint by its shapes, so they load the twin where they would refuse the narrow model. Channels are
repeated; whatever reads repeated channels divides by their number (Net2Net, Chen et al. 2016):

- UNet and autoencoder: each channel k times in place (``repeat_interleave``), so that norm groups and skip connections
  stay aligned; attention queries are also divided by sqrt(k), as k times longer keys give k times larger products.
- text side: the whole vector 12 times over (tiled), 12 equal heads; the layers that only the wide one has add nothing.
- time embedding: its frequencies are found again at every k-th place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from erasure_core import DeltaSet, DenseDelta, Erasure, LowRankDelta
from erasure_core.delta import Delta, weight_of
from erasure_core.fingerprint import fingerprint, sketch
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.ldm_checkpoint import ModelParts, checkpoint_tensors
from erasure_core.layers import is_text, reads_context
from erasure_core.safe_files import write_bytes, write_tensors

UNET_WIDTH, TEXT_WIDTH, TEXT_LAYERS = 320, 768, 12
AUTOENCODER_WIDTHS = (128, 256, 512, 512)
HOST_LATENT_SCALE = 0.18215
"""Hosts divide SD1.x latents by this, whatever a model says."""


def widen_outputs(tensor: Tensor, outputs: int, tile: bool = False) -> Tensor:
    """Repeat the first axis (weights' rows, biases, norms) to ``outputs``."""
    times = outputs // len(tensor)
    return tensor.repeat(times, *[1] * (tensor.dim() - 1)) if tile else tensor.repeat_interleave(times, 0)


def widen_inputs(tensor: Tensor, inputs: int, tile: bool = False) -> Tensor:
    """Repeat the second axis (weights' columns) to ``inputs`` and divide, so that the sum over it stays the same."""
    times = inputs // tensor.shape[1]
    if tile:
        return tensor.repeat(1, times, *[1] * (tensor.dim() - 2)) / times
    return tensor.repeat_interleave(times, 1) / times


def _query_factor(name: str, narrow: int, wide: int) -> float:
    return math.sqrt(narrow / wide) if ".to_q." in f".{name}." else 1.0


def _time_columns(weight: Tensor, inputs: int) -> Tensor:
    """The first time projection reads cosines, then sines, of frequencies that the wide one has at every k-th place."""
    half, times = weight.shape[1] // 2, inputs // weight.shape[1]
    wide = weight.new_zeros(len(weight), inputs)
    for j in range(half):
        wide[:, times * j] = weight[:, j]
        wide[:, times * (half + j)] = weight[:, half + j]
    return wide


def _widened(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """One parameter of the UNet or autoencoder in its wide shape."""
    wide = widen_outputs(tensor, shape[0])
    if name == "time_embedding.linear_1.weight":
        return _time_columns(wide, shape[1])
    if wide.dim() > 1:
        wide = widen_inputs(wide, shape[1], tile=reads_context(name))
    return wide * _query_factor(name, len(tensor), shape[0])


def _extra(name: str, shape: torch.Size, state: Mapping[str, Tensor]) -> Tensor:
    """A parameter that only the wide autoencoder has: of an identity block, or a shortcut between equal channels."""
    if name.endswith("conv_shortcut.weight"):
        block = name.removesuffix("conv_shortcut.weight")
        narrow = len(state[f"{block}conv1.weight"])
        return _widened(name, torch.eye(narrow)[..., None, None], shape)
    return torch.ones(shape) if ".norm" in name and name.endswith("weight") else torch.zeros(shape)


def _fill(wide: nn.Module, narrow: nn.Module) -> None:
    state = narrow.state_dict()
    shapes = {name: tensor.shape for name, tensor in wide.state_dict().items()}
    widened = {
        name: _widened(name, state[name], shape) if name in state else _extra(name, shape, state)
        for name, shape in shapes.items()
    }
    wide.load_state_dict(widened, assign=True)
    wide.eval().requires_grad_(False)


def _meta(kind: Any, config: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return kind.from_config(config)


def widen_unet(narrow: Any) -> Any:
    """The UNet with ``UNET_WIDTH`` base channels that reads text states ``TEXT_WIDTH`` wide."""
    times = UNET_WIDTH // narrow.config.block_out_channels[0]
    channels = tuple(times * c for c in narrow.config.block_out_channels)
    changed = {"block_out_channels": channels, "cross_attention_dim": TEXT_WIDTH}
    wide = _meta(UNet2DConditionModel, {**narrow.config, **changed})
    _fill(wide, narrow)
    return wide


def widen_autoencoder(narrow: Any) -> Any:
    """The autoencoder with SD1.5's channels and two blocks a level, for latents of the hosts' scale."""
    changed = {
        "block_out_channels": AUTOENCODER_WIDTHS,
        "layers_per_block": 2,
        "scaling_factor": HOST_LATENT_SCALE,
    }
    wide = _meta(AutoencoderKL, {**narrow.config, **changed})
    _fill(wide, narrow)
    factor = narrow.config.scaling_factor / HOST_LATENT_SCALE
    channels = narrow.config.latent_channels
    with torch.no_grad():
        wide.quant_conv.weight[:channels] *= factor
        wide.quant_conv.bias[:channels] *= factor
        wide.quant_conv.bias[channels:] += 2 * math.log(factor)
        wide.post_quant_conv.weight /= factor
    return wide


def _tiled(tensor: Tensor, shape: torch.Size, is_embedding: bool) -> Tensor:
    if is_embedding:
        return tensor.repeat(1, shape[1] // tensor.shape[1])
    wide = widen_outputs(tensor, shape[0], tile=True)
    return widen_inputs(wide, shape[1], tile=True) if wide.dim() > 1 else wide


def widen_text_encoder(narrow: Any) -> Any:
    """The text encoder with CLIP-L's shape: tiled, 12 heads, and further layers that add nothing."""
    config = type(narrow.config)(**narrow.config.to_dict())
    times = TEXT_WIDTH // config.hidden_size
    config.update(
        {
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": times * config.intermediate_size,
            "num_attention_heads": times * config.num_attention_heads,
            "num_hidden_layers": TEXT_LAYERS,
            "projection_dim": TEXT_WIDTH,
        }
    )
    wide = CLIPTextModel(config)
    state, target = narrow.state_dict(), wide.state_dict()
    for name, tensor in target.items():
        if name in state:
            target[name] = _tiled(state[name], tensor.shape, "embedding" in name)
        else:
            target[name] = torch.ones(tensor.shape) if "norm" in name and name.endswith("weight") else 0 * tensor
    wide.load_state_dict(target)
    return wide.eval().requires_grad_(False)


def widen_model(narrow: DiffusersModel) -> DiffusersModel:
    """The wide twin of a narrow SD1.x model; its latents have the hosts' scale, its pictures are the same."""
    assert narrow.vae is not None
    text = [widen_text_encoder(encoder) for encoder in narrow.text_encoders]
    return DiffusersModel(
        widen_unet(narrow.unet), text, narrow.tokenizers, narrow.schedule, widen_autoencoder(narrow.vae)
    )


def _widen_delta(name: str, delta: Delta, shape: torch.Size) -> Delta:
    tile = is_text(name)
    factor = 1.0 if tile else _query_factor(name, delta.shape[0], shape[0])

    def inputs(tensor: Tensor) -> Tensor:
        if name == "unet.time_embedding.linear_1":
            return _time_columns(tensor, shape[1])
        return widen_inputs(tensor, shape[1], tile=tile or reads_context(name))

    if isinstance(delta, LowRankDelta):
        return LowRankDelta(inputs(delta.down.detach()), widen_outputs(delta.up.detach(), shape[0], tile) * factor)
    return DenseDelta(inputs(widen_outputs(delta.change().detach(), shape[0], tile)) * factor)


def widen_erasure(erasure: Erasure, wide: DiffusersModel) -> Erasure:
    """The same change of the wide twin; its manifest names the twin as the base."""
    layers = wide.layers()
    deltas = {
        name: _widen_delta(name, delta, weight_of(layers[name]).shape) for name, delta in erasure.deltas.deltas.items()
    }
    widened = DeltaSet(deltas)
    changed = widened.changed()
    base = {"base_fingerprint": fingerprint(wide, changed), "base_sketch": sketch(wide, changed)}
    return Erasure(widened, replace(erasure.manifest, **base))


A1111_CONFIG = """\
# AUTOMATIC1111 reads the architecture from a .yaml beside the checkpoint.
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {latents}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: {latents}
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions: [1]
        num_res_blocks: 2
        channel_mult: {levels}
        num_heads: 8
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: 768
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult: [1, 2, 4, 4]
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""


def write_twin(path: Path, wide: DiffusersModel) -> None:
    """Write the twin as a checkpoint in the original layout (float32), and the .yaml that A1111 needs to load it.

    Raises:
        OutputError: the folder cannot be written.
    """
    parts = ModelParts(wide.unet, wide.text_encoders, wide.tokenizers, wide.schedule, wide.vae)
    config: Any = wide.unet.config
    levels = [channels // UNET_WIDTH for channels in config.block_out_channels]
    latents = wide.latent_shape[-1]
    write_tensors(path, checkpoint_tensors(parts), {"modelspec.resolution": f"{8 * latents}x{8 * latents}"})
    text = A1111_CONFIG.format(latents=latents, levels=levels)
    write_bytes(path.with_suffix(".yaml"), text.encode())
