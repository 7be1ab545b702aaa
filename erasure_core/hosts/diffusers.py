"""Stable Diffusion models in diffusers' folder layout: the stand-alone host behind the command line."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..delta import weight_of
from ..errors import (
    DeviceOutOfMemory,
    InvalidConcept,
    InvalidFile,
    ModelError,
    is_out_of_memory,
    telling_memory,
)
from ..model import Conditioning
from ..safe_files import check_regular_inside, read_header, read_text, refuse_pickled
from ..schedule import NoiseSchedule
from .autoencoder import checked_latents, checked_pictures, decoded_at_once
from .families import TEXT_ENCODERS, latent_side
from .ldm_checkpoint import ModelParts, read_checkpoint
from .token_rows import Marks, ends_of, framed
from .training import frozen

LARGEST_SIDE = 4096
"""Latent pixels along a side that a model may say it was made for."""
MOST_TIMESTEPS = 100_000
MOST_LAYERS = 1000
"""Layers that a part's configuration may ask for; the libraries would build any number before they look at a file."""
LAYER_COUNTS = (
    "layers_per_block",
    "num_hidden_layers",
    "reverse_transformer_layers_per_block",
    "transformer_layers_per_block",
)
SHORTEST_ROW = 3
"""Tokens of a prompt that says anything: its begin, one of its own, its end."""
VAE_CURE = 'get a fresh copy of it, or write "force_upcast": true into the config.json of the folder vae'


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
        size = config.sample_size or latent_side(self.family, schedule.prediction)
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
            InvalidFile: the checkpoint is no safetensors file, or a folder's weights are pickled.
        """
        parts = _read(Path(path), _device(device), pictures, prediction)
        _check_parts(Path(path), parts)
        return cls(parts.unet, parts.text_encoders, parts.tokenizers, parts.schedule, parts.vae)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self._encode(*self.token_rows(self.tokenize(prompts)))

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        _check_unicode(prompts)
        ids: list[list[int]] = self.tokenizers[0](list(prompts), add_special_tokens=False).input_ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        return str(self.tokenizers[0].decode(list(ids))).strip()

    def token_rows(self, rows: Sequence[Sequence[int]]) -> tuple[list[Tensor], tuple[int, ...]]:
        marks = [Marks(t.bos_token_id, t.eos_token_id, t.pad_token_id) for t in self.tokenizers]
        whole = [framed(rows, own, self.detokenize, self._length).to(self.device) for own in marks]
        return whole, ends_of(rows)

    @property
    def _length(self) -> int:
        """Ids in a row. A tokenizer's files may leave it open, or claim more than its text encoder has places for."""
        encoders: list[Any] = self.text_encoders
        places = [int(encoder.config.max_position_embeddings) for encoder in encoders]
        return int(min([*places, *(tokenizer.model_max_length for tokenizer in self.tokenizers)]))

    def token_tables(self) -> list[Tensor]:
        sizes = zip(self.text_encoders, self._vocabulary_sizes, strict=True)
        return [_token_layer(encoder).weight.detach()[:size] for encoder, size in sizes]

    @cached_property
    def _vocabulary_sizes(self) -> list[int]:
        """Rows beyond the tokenizer's last id, which some text encoders have, stand for nothing."""
        return [1 + max(tokenizer.get_vocab().values()) for tokenizer in self.tokenizers]

    def encode_embeddings(self, embeddings: Sequence[Tensor], ends: Sequence[int]) -> Conditioning:
        # The encoder itself looks for the end token, by its id, only to place the pooled output.
        ids = []
        for given, tokenizer in zip(embeddings, self.tokenizers, strict=True):
            row = torch.full(given.shape[:2], int(tokenizer.eos_token_id == 0), dtype=torch.long)
            row[torch.arange(len(row)), list(ends)] = tokenizer.eos_token_id
            ids.append(row)
        with ExitStack() as stack:
            for encoder, given in zip(self.text_encoders, embeddings, strict=True):
                layer = _token_layer(encoder)
                stack.callback(layer.register_forward_hook(_returning(given.to(layer.weight.dtype))).remove)
            return self._encode(ids, tuple(ends))

    def _encode(self, ids: Sequence[Tensor], ends: tuple[int, ...]) -> Conditioning:
        contexts: list[Tensor] = []
        pooled: Tensor | None = None
        for encoder, row in zip(self.text_encoders, ids, strict=True):
            out = encoder(row.to(self.device), output_hidden_states=self.is_sdxl)
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

    def attention_heads(self, name: str) -> int:
        """The heads of a cross-attention, such as ``unet.mid_block.attentions.0.transformer_blocks.0.attn2``."""
        attention: Any = self.unet.get_submodule(name.removeprefix("unet."))
        return int(attention.heads)

    def base_weight(self, name: str) -> Tensor:
        return weight_of(self.layers()[name])

    def weight(self, name: str) -> Tensor:
        return self.base_weight(name)

    def every_parameter(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, by part and name."""
        parts = [("unet", self.unet), *zip(TEXT_ENCODERS, self.text_encoders, strict=False)]
        for part, module in [*parts, *([] if self.vae is None else [("vae", self.vae)])]:
            yield from ((f"{part}.{name}", parameter) for name, parameter in module.named_parameters())

    def other_parameters(self) -> dict[str, Tensor]:
        """The parameters that are no layer weights (biases, norms, embeddings), of the UNet by diffusers' names, of
        text encoders by canonical ones."""
        weights = {f"{name}.weight" for name in self.layers()}
        unet = self.unet.named_parameters()
        found: dict[str, Tensor] = {name: parameter for name, parameter in unet if f"unet.{name}" not in weights}
        for prefix, encoder in zip(TEXT_ENCODERS, self.text_encoders, strict=False):
            named = ((_canonical(prefix, name), parameter) for name, parameter in encoder.named_parameters())
            found |= {name: parameter for name, parameter in named if name not in weights}
        return found

    @contextmanager
    def trainable(self, checkpointing: bool = False) -> Iterator[None]:
        recomputing = _recomputing(self.unet) if checkpointing else nullcontext()
        with frozen([self.unet, *self.text_encoders]), recomputing, torch.inference_mode(False), torch.enable_grad():
            yield

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self._autoencoder()
        parameter = next(vae.parameters())
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        pieces = decoded_at_once(scaled.to(parameter.device, parameter.dtype))
        pictures = torch.cat([_in_tiles_if_need_be(vae, vae.decode, piece).sample.float().cpu() for piece in pieces])
        return checked_pictures((pictures + 1) * 127.5, self, VAE_CURE)

    @torch.no_grad()
    def latents_of(self, pictures: Tensor) -> Tensor:
        vae = self._autoencoder()
        parameter = next(vae.parameters())
        pieces = ((one.float() / 127.5 - 1).to(parameter.device, parameter.dtype) for one in torch.split(pictures, 1))
        encoded = [_in_tiles_if_need_be(vae, vae.encode, one).latent_dist.mode().float() for one in pieces]
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return checked_latents((torch.cat(encoded) - shift) * vae.config.scaling_factor, self, VAE_CURE)

    def _autoencoder(self) -> Any:
        if self.vae is None:
            raise ModelError("This model was loaded without its autoencoder, so it can neither show nor read pictures.")
        return self.vae


def _in_tiles_if_need_be(vae: Any, work: Callable[[Tensor], Any], given: Tensor) -> Any:
    """Decode or encode one piece; where memory does not suffice for it whole, in tiles, and so from then on. SDXL's
    autoencoder, which computes in 32 bits, takes more for one picture than the network for several."""
    try:
        with telling_memory():
            return work(given)
    except DeviceOutOfMemory:
        if vae.use_tiling:
            raise
    vae.enable_tiling()
    return work(given)


@contextmanager
def _recomputing(unet: Any) -> Iterator[None]:
    """Inside, a diffusers network recomputes its activations in its own way."""
    before = [(part, part.gradient_checkpointing) for part in unet.modules() if hasattr(part, "gradient_checkpointing")]
    try:
        unet.enable_gradient_checkpointing()
        yield
    finally:
        for part, was_recomputing in before:
            part.gradient_checkpointing = was_recomputing


def _check_unicode(prompts: Sequence[str]) -> None:
    """Raises InvalidConcept for a prompt that is no Unicode text, which a terminal of another encoding gives."""
    for prompt in prompts:
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InvalidConcept(f"The prompt {prompt[:60]!r} holds bytes that are no UTF-8; write them as text.")


def _token_layer(encoder: nn.Module) -> nn.Embedding:
    table = encoder.get_input_embeddings()  # type: ignore[operator]  # transformers is not typed
    assert isinstance(table, nn.Embedding)
    return table


def _returning(output: Tensor):  # type: ignore[no-untyped-def]  # torch's hook type is not exported
    def replace(layer: nn.Module, inputs: Any, looked_up: Tensor) -> Tensor:
        return output

    return replace


def _linear_layers(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            yield _canonical(prefix, name), layer


def _canonical(prefix: str, name: str) -> str:
    # transformers 5 dropped this prefix inside CLIPTextModel; names in files keep it.
    bare = prefix != "unet" and not name.startswith(("text_model.", "text_projection"))
    return f"{prefix}.text_model.{name}" if bare else f"{prefix}.{name}"


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device(next(iter(_accelerators()), "cpu"))
    reason = "there is no such kind of device"
    try:
        device = torch.device(wanted)
        reason = "this machine has none, or its torch was built without it"
        if device.type == "meta":
            raise ValueError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"The device {wanted!r} cannot be used: {reason}; choose from {_devices()}.") from error
    return device


def _accelerators() -> list[str]:
    """The kinds of device beside the CPU that this machine has, the fastest first."""
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),  # torch 2.1 has none
        "mps": torch.backends.mps.is_available(),
    }
    return [kind for kind, is_there in there.items() if is_there]


def _devices() -> str:
    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ", ".join(["auto", "cpu", *cards, *(kind for kind in _accelerators() if kind != "cuda")])


def _dtype(device: torch.device) -> torch.dtype:
    """What the device computes fast in. Older cards only emulate bfloat16, slowly."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.float32


def _check_parts(path: Path, parts: ModelParts) -> None:
    """Whether the parts of a model fit together, before a library fails inside of one.

    Raises:
        ModelError: they do not, or the diffusion network is of a kind that is not supported.
    """
    config: Any = parts.unet.config
    read, made = config.in_channels, config.out_channels
    if read != made:
        raise ModelError(
            f"The model {path} reads {read} channels and predicts {made}; inpainting models and the like are not "
            "supported."
        )
    size = config.sample_size
    sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    fits = len(sides) == 2 and all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides)
    if size is not None and not fits:
        raise ModelError(
            f"The model {path} says that its pictures are {str(size)[:60]} latent pixels large; that cannot be."
        )
    vae: Any = parts.vae
    scales = [] if vae is None else [vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 1.0]
    if not all(isinstance(scale, (int, float)) and scale and math.isfinite(scale) for scale in scales):
        raise ModelError(f"The model {path} has an autoencoder whose scale is {str(scales)[:60]}; that cannot be.")
    encoders: list[Any] = parts.text_encoders
    width, reads = sum(int(encoder.config.hidden_size) for encoder in encoders), config.cross_attention_dim
    if set(reads if isinstance(reads, (list, tuple)) else [reads]) != {width}:
        raise ModelError(
            f"The model {path} has a text encoder of width {width}, but its diffusion network reads {reads}: they "
            "belong to different models."
        )
    for encoder, tokenizer in zip(encoders, parts.tokenizers, strict=True):
        longest = tokenizer.model_max_length
        if not (isinstance(longest, (int, float)) and longest >= SHORTEST_ROW):
            raise ModelError(f"The model {path} has a tokenizer that says it reads {str(longest)[:60]} tokens.")
        if tokenizer.pad_token_id is None:
            raise ModelError(f"The model {path} has a tokenizer without a token to fill prompts up with.")
        if len(tokenizer) > len(_token_layer(encoder).weight):
            raise ModelError(
                f"The model {path} has a tokenizer with more words than its text encoder knows: they belong to "
                "different models."
            )


def _schedule(folder: Path) -> NoiseSchedule:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    start, end, steps = (config.get(name) for name in ("beta_start", "beta_end", "num_train_timesteps"))
    kind, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    zero_terminal = bool(config.get("rescale_betas_zero_snr"))
    impossible = zero_terminal and prediction == "epsilon"  # in pure noise, noise tells nothing of a picture
    if kind not in ("linear", "scaled_linear") or config.get("trained_betas") or impossible:
        raise ModelError(f"The model {folder} has a noise schedule that is not supported ({kind}, or a changed one).")
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(f"The model {folder} predicts {prediction!r}; only epsilon and v_prediction are supported.")
    numbers = all(isinstance(beta, (int, float)) and 0 < beta < 1 for beta in (start, end))
    if not (numbers and isinstance(steps, int) and 1 < steps <= MOST_TIMESTEPS):
        raise ModelError(f"The model {folder} has a noise schedule that cannot be ({start} to {end} in {steps} steps).")
    power = 2 if kind == "scaled_linear" else 1
    betas = torch.linspace(start ** (1 / power), end ** (1 / power), steps, dtype=torch.float64) ** power
    return NoiseSchedule.from_alphas_cumprod(torch.cumprod(1 - betas, dim=0), prediction, zero_terminal)


def _read(path: Path, device: torch.device, pictures: bool, prediction: str | None) -> ModelParts:
    if not os.path.exists(path):  # pathlib raises an error for a name that is too long
        raise ModelError(f"The model {path} does not exist; give a model folder or a .safetensors checkpoint.")
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f'{error.name} is missing; in the folder of this software: pip install ".[standalone]"'
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
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    second = os.path.isdir(folder / "text_encoder_2")
    wanted = ["unet", "text_encoder", *(["text_encoder_2"] if second else []), *(["vae"] if pictures else [])]
    _check_files(folder, wanted, ["tokenizer", *(["tokenizer_2"] if second else [])])
    try:
        schedule = _schedule(folder)
        unet = _whole(UNet2DConditionModel, folder / "unet", dtype)
        encoders, tokenizers = (
            [_whole(CLIPTextModel, folder / "text_encoder", dtype)],
            [_tokenizer(folder / "tokenizer")],
        )
        if second:
            encoders.append(_whole(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype))
            tokenizers.append(_tokenizer(folder / "tokenizer_2"))
        vae = None
        if pictures:
            # The autoencoders of some families overflow in float16 and say so in their configuration.
            upcast = _config(folder / "vae").get("force_upcast", True)
            vae = _whole(AutoencoderKL, folder / "vae", torch.float32 if upcast else dtype)
    except ModelError:
        raise
    except Exception as error:  # the libraries raise dozens of types for a damaged folder
        if is_out_of_memory(error):
            raise
        told = _damage(folder, wanted) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"The model {folder} is incomplete or damaged ({told}); get a fresh copy.") from error
    return ModelParts(unet, encoders, tokenizers, schedule, vae)


def _check_files(folder: Path, networks: Sequence[str], tokenizers: Sequence[str]) -> None:
    """Whether a model folder has all files, and none that the libraries would wait for: of what is missing they tell
    in terms of their own functions.

    Raises:
        ModelError: something is missing, or is a pipe or a device.
        InvalidFile: weights are pickled.
    """
    missing = [
        name
        for name in ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in networks))
        if not os.path.lexists(folder / name)
    ]
    missing += [
        f"{part}/*.safetensors"
        for part in networks
        if not any(path.suffix in (".safetensors", ".bin") for path in (folder / part).glob("*"))
    ]  # a .bin has its own sentence below
    if missing:
        raise ModelError(f"The model {folder} is incomplete or damaged (it lacks {missing[0]}); get a fresh copy.")
    try:
        for part in filter(os.path.isdir, (folder, *(folder / p for p in ("scheduler", *networks, *tokenizers)))):
            check_regular_inside(Path(part))
    except InvalidFile as error:
        raise ModelError(f"The model {folder} is incomplete or damaged: {error}") from error
    for name in networks:
        refuse_pickled(folder / name)


def _damage(folder: Path, networks: Sequence[str]) -> str | None:
    """Which file of a model that a library could not load is broken, if that can be seen from outside."""
    for part in ("scheduler", *networks):
        for path in sorted((folder / part).glob("*")):
            try:
                if path.suffix == ".json" and not isinstance(json.loads(read_text(path)), dict):
                    return f"{path} is no JSON object"
                if path.suffix == ".safetensors":
                    read_header(path)
            except InvalidFile as error:
                return str(error).rpartition("; ")[0]
            except (ValueError, RecursionError):
                return f"{path} is no JSON"
    return None


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _largest(count: Any) -> int:
    """The largest number in a configuration's entry, which may be one, a list of such entries, or nothing."""
    if isinstance(count, list):
        return max(map(_largest, count), default=0)
    return count if isinstance(count, int) else 0


def _whole(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one part; the libraries fill missing tensors with random numbers and only warn.

    Raises:
        ModelError: tensors are missing or misshapen, or there are to be more layers than any model has.
    """
    config = _config(folder)
    deepest = max(_largest(config.get(name)) for name in LAYER_COUNTS)
    if deepest > MOST_LAYERS:
        raise ModelError(f"The model part {folder} has a configuration that cannot be ({deepest} layers).")
    options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True, "output_loading_info": True}
    options["use_safetensors"] = True  # a pickle beside them could run any code
    if not any(folder.glob("*model.safetensors")) and any(folder.glob("*.fp16.safetensors")):
        options["variant"] = "fp16"
    if kind.__module__.startswith("diffusers") and importlib.util.find_spec("accelerate") is None:
        options["low_cpu_mem_usage"] = False
    module, report = kind.from_pretrained(folder, **options)
    missing = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    wrong = [*missing, *(entry[0] for entry in report["mismatched_keys"])]
    if wrong:
        raise ModelError(f"The model part {folder} lacks {len(wrong)} tensors (first: {wrong[0]}); get a fresh copy.")
    return module


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise ModelError(f"The model lacks its vocabulary ({folder / 'vocab.json'}); get a fresh copy.")
    return CLIPTokenizer.from_pretrained(folder)
