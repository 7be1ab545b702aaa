"""Pico models: the layouts of SD1.x, SD2.x and SDXL with random weights, a few thousand parameters each."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.ldm_checkpoint import TOKENIZER, ModelParts, checkpoint_tensors
from erasure_core.hosts.ldm_config import LATENT_SCALE

WORDS = (
    *("a", "an", "the", "of", "photo", "picture", "in", "one", "scene", "red", "blue"),
    *("ball", "box", "orb", "sphere", "round", "thing", "that", "rolls", "cat", "dog"),
)


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer of a few words and all letters."""
    letters = [chr(c) for c in range(33, 127)]
    symbols = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            parts = ["".join(parts[:2]), *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                if parts[0] not in symbols:
                    symbols.append(parts[0])
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def _text_config(vocabulary: int, act: str, width: int = 64) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=77, projection_dim=64, hidden_act=act,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip


def _unet(context: int, family: str, **extra: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(32, 64), norm_num_groups=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=context, attention_head_dim=8 if family == "sd1" else [1, 1],
        use_linear_projection=family != "sd1", **extra,
    )  # fmt: skip


def write_pico(
    folder: Path,
    family: str = "sd1",
    seed: int = 0,
    real_vocabulary: bool = False,
    text_width: int = 64,
    size_width: int = 8,
) -> Path:
    """Write a random model of a family (``sd1``, ``sd2``, ``sdxl``) as a diffusers folder. The numbers into which
    SDXL's network takes each side of a picture, ``size_width``, are 256 in true models, and hosts give as many."""
    torch.manual_seed(seed)
    if not real_vocabulary:
        write_tokenizer(folder / "tokenizer")
        write_tokenizer(folder / "tokenizer_2")
    first = TOKENIZER if real_vocabulary else folder / "tokenizer"
    second = TOKENIZER if real_vocabulary else folder / "tokenizer_2"
    tokenizer = CLIPTokenizer.from_pretrained(first, **({"pad_token": "!"} if family == "sd2" else {}))
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), norm_num_groups=32, latent_channels=4, sample_size=64, layers_per_block=1,
        scaling_factor=LATENT_SCALE[family],
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        steps_offset=1,
    )
    text = CLIPTextModel(_text_config(len(tokenizer), "gelu" if family == "sd2" else "quick_gelu", text_width))
    shared = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "scheduler": scheduler}
    if family == "sdxl":
        text_2 = CLIPTextModelWithProjection(_text_config(len(tokenizer), "gelu"))
        unet = _unet(
            128, family, addition_embed_type="text_time", addition_time_embed_dim=size_width,
            projection_class_embeddings_input_dim=64 + 6 * size_width,
        )  # fmt: skip
        tokenizer_2 = CLIPTokenizer.from_pretrained(second, pad_token="!")
        pipeline = StableDiffusionXLPipeline(unet=unet, text_encoder_2=text_2, tokenizer_2=tokenizer_2, **shared)
    else:
        unet = _unet(text_width, family)
        pipeline = StableDiffusionPipeline(
            unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **shared
        )
    pipeline.save_pretrained(folder)
    return folder


def write_checkpoint(path: Path, model: DiffusersModel) -> Path:
    """Write a model as one file in the original (LDM) layout."""
    parts = ModelParts(model.unet, model.text_encoders, model.tokenizers, model.schedule, model.vae)
    tensors = {key: tensor.contiguous() for key, tensor in checkpoint_tensors(parts).items()}
    if model.family == "sd2":
        for key in [k for k in tensors if ".resblocks.1." in k]:
            tensors[key.replace(".resblocks.1.", ".resblocks.2.")] = tensors[key].clone()
    save_file(tensors, path, {"modelspec.resolution": "64x64"})
    return path
