"""A small host with the traits of ComfyUI that have broken extensions, around pico models.

Weights are inference tensors that require gradients; layers cast and patch them in each call; patches of unknown keys
are left out without a word; CLIP layers add in place; interrupts derive from BaseException and may come from any layer.
"""

from __future__ import annotations

import enum
import sys
import types
import uuid
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:  # importing diffusers would hide what the pack's own imports cost
    from erasure_core.hosts.diffusers import DiffusersModel

Backup = namedtuple("Backup", ["weight", "inplace_update"])


class Interrupted(BaseException):
    """Since 2026 not even ``except Exception`` stops it."""


class ExecutionBlocker:
    """As an output it keeps the nodes behind it from running; the host shows its message."""

    def __init__(self, message: str | None) -> None:
        self.message = message


class Switches:
    """What tests turn: the interrupt request, and after how many layer calls an operation raises by itself."""

    interrupt = False
    calls_until_raise = -1

    @classmethod
    def reset(cls) -> None:
        cls.interrupt, cls.calls_until_raise = False, -1


class CastOps:
    comfy_cast_weights = False
    weight_function: list[Callable[[Tensor], Tensor]] = []  # noqa: RUF012  # as the host has it
    bias_function: list[Callable[[Tensor], Tensor]] = []  # noqa: RUF012


def _host_layer(kind: type[nn.Module]) -> type[nn.Module]:
    class HostLayer(CastOps, kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, *others: Any, **named: Any) -> Any:
            if Switches.calls_until_raise >= 0:
                Switches.calls_until_raise -= 1
                if Switches.calls_until_raise < 0:
                    raise Interrupted
            if not (self.comfy_cast_weights or self.weight_function or self.bias_function):
                return super().forward(x, *others, **named)
            held = dict(self._parameters)
            try:
                for name, functions in (("weight", self.weight_function), ("bias", self.bias_function)):
                    if held.get(name) is not None:
                        dtype = x.dtype if x.is_floating_point() else torch.float32
                        weight = held[name].to(dtype)
                        for function in functions:
                            weight = function(weight)
                        self._parameters[name] = weight
                return super().forward(x, *others, **named)
            finally:
                self._parameters.update(held)

    return HostLayer


HOST_LAYERS = {kind: _host_layer(kind) for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding)}


def as_host_module(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Turn a network's layers into the host's, with inference tensors as weights, stored in ``dtype``."""
    for layer in module.modules():
        layer.__class__ = HOST_LAYERS.get(type(layer), type(layer))
        if dtype != torch.float32 and isinstance(layer, CastOps):
            layer.comfy_cast_weights = True
        with torch.inference_mode():
            for name, parameter in layer._parameters.items():
                if parameter is not None:
                    layer._parameters[name] = nn.Parameter(parameter.detach().clone().to(dtype), requires_grad=True)
    return module


class LoRAAdapter:
    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights


def calculate_weight(patches: list[Any], weight: Tensor, key: str) -> Tensor:
    for strength, value, strength_model, _, _ in patches:
        weight *= strength_model
        if isinstance(value, list):  # a merged model: its weight, and its own patches
            merged, convert = value[0]
            value = ("diff", (calculate_weight(value[1:], convert(merged.float().clone(), inplace=True), key),))
        if isinstance(value, tuple) and value[0] == "set":
            weight.copy_(value[1][0])
            continue
        if isinstance(value, LoRAAdapter):
            up, down, alpha = value.weights[:3]
            change = (up.flatten(1).float() @ down.flatten(1).float()).view(weight.shape) * (alpha / len(down))
        else:
            change = value[1][0].float()
        if change.shape == weight.shape:  # the host only logs a warning otherwise
            weight += strength * change
    return weight


class ModelPatcher:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.load_device = model, torch.device("cpu")
        self.patches: dict[str, list[Any]] = {}
        self.backup: dict[str, Backup] = {}
        self.attachments: dict[str, Any] = {}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.patches_uuid = uuid.uuid4()

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.patches = {key: list(patches) for key, patches in self.patches.items()}
        other.backup, other.patches_uuid = self.backup, self.patches_uuid
        other.attachments = dict(self.attachments)
        other.wrappers = {kind: {k: list(v) for k, v in by_key.items()} for kind, by_key in self.wrappers.items()}
        return other

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0, strength_model: float = 1.0) -> list[str]:
        taken = [key for key in patches if key in self.model.state_dict()]
        for key in taken:
            self.patches.setdefault(key, []).append((strength, patches[key], strength_model, None, None))
        self.patches_uuid = uuid.uuid4()
        return taken

    def get_key_patches(self, prefix: str | None = None) -> dict[str, list[Any]]:
        found = {}
        for key in self.model.state_dict():
            if prefix is None or key.startswith(prefix):
                path, _, leaf = key.rpartition(".")
                live = getattr(self.model.get_submodule(path), leaf)
                weight = self.backup[key].weight if key in self.backup else live
                found[key] = [(weight, lambda w, **named: w), *self.patches.get(key, [])]
        return found

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def load(self, lazily: bool = False) -> None:
        """Put the patches on: into the weights, or as functions that every call applies."""
        self.unload()
        with torch.inference_mode():
            for key, patches in self.patches.items():
                path, _, leaf = key.rpartition(".")
                layer = self.model.get_submodule(path)
                if lazily:
                    layer.weight_function = [lambda w, p=patches, k=key: calculate_weight(p, w.float().clone(), k)]
                    continue
                weight = layer._parameters[leaf]
                self.backup[key] = Backup(weight, False)
                patched = calculate_weight(patches, weight.float().clone(), key).to(weight.dtype)
                layer._parameters[leaf] = nn.Parameter(patched, requires_grad=True)
        self.model.current_weight_patches_uuid = self.patches_uuid

    def unload(self) -> None:
        for key, backup in self.backup.items():
            path, _, leaf = key.rpartition(".")
            self.model.get_submodule(path)._parameters[leaf] = backup.weight
        self.backup.clear()
        for layer in self.model.modules():
            if isinstance(layer, CastOps):
                layer.__dict__.pop("weight_function", None)
        self.model.current_weight_patches_uuid = None

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def get_wrappers(self, kind: str, key: str) -> list[Any]:
        return self.wrappers.get(kind, {}).get(key, [])

    def get_all_wrappers(self, kind: str) -> list[Any]:
        return [wrapper for found in self.wrappers.get(kind, {}).values() for wrapper in found]

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)


def merged(one: ModelPatcher, other: ModelPatcher, strength: float, scale: float) -> ModelPatcher:
    """As the host's nodes that merge two models do it: the second one whole, behind the patches of the first."""
    both = one.clone()
    for key, patches in other.get_key_patches("diffusion_model.").items():
        both.add_patches({key: patches}, strength, scale)
    return both


def merge_simple(one: ModelPatcher, other: ModelPatcher, ratio: float) -> ModelPatcher:
    return merged(one, other, 1.0 - ratio, ratio)


def merge_subtract(one: ModelPatcher, other: ModelPatcher, multiplier: float = 1.0) -> ModelPatcher:
    return merged(one, other, -multiplier, multiplier)


def merge_add(one: ModelPatcher, other: ModelPatcher) -> ModelPatcher:
    return merged(one, other, 1.0, 1.0)


class EPS:
    def calculate_denoised(self) -> None: ...


class V_PREDICTION(EPS):
    def calculate_denoised(self) -> None: ...


class X0(EPS):
    def calculate_denoised(self) -> None: ...


class EDM(V_PREDICTION): ...


class ModelSamplingDiscrete(nn.Module):
    def __init__(self, sigmas: Tensor) -> None:
        super().__init__()
        self.register_buffer("sigmas", sigmas)

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else float(self.sigmas[int((1 - percent) * (len(self.sigmas) - 1))])


class Epsilon(ModelSamplingDiscrete, EPS): ...


class Velocity(ModelSamplingDiscrete, V_PREDICTION): ...


class Continuous(ModelSamplingDiscrete, EDM): ...


class Distilled(ModelSamplingDiscrete, X0): ...


class FewSteps(ModelSamplingDiscrete, EPS):
    num_timesteps = 50


class DiffusionModel(nn.Module):
    """A diffusers UNet behind ComfyUI's call; ``y`` is the pooled text followed by six sizes."""

    def __init__(self, unet: nn.Module, pooled_width: int) -> None:
        super().__init__()
        self.inner, self.pooled_width = unet, pooled_width

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Any = None, transformer_options: Any = None
    ) -> Any:
        assert "optimized_attention_override" in transformer_options
        assert timesteps.is_floating_point() and x.dtype == context.dtype
        added = None
        if y is not None:
            added = {"text_embeds": y[:, : self.pooled_width], "time_ids": y[:, self.pooled_width :]}
        return self.inner(x, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]


class BaseModel(nn.Module):
    def __init__(self, oracle: DiffusersModel, dtype: torch.dtype) -> None:
        super().__init__()
        config: Any = oracle.unet.config
        pooled = 64 if oracle.is_sdxl else 0
        self.diffusion_model = as_host_module(DiffusionModel(oracle.unet, pooled), dtype)
        unet_config = {"in_channels": 4, "context_dim": 1024 if oracle.family == "sd2" else 768, "num_res_blocks": [1]}
        self.model_config = types.SimpleNamespace(unet_config={**unet_config, "names": _names(oracle.unet)})
        self.manual_cast_dtype = torch.float32 if dtype != torch.float32 else None
        schedule = oracle.schedule
        sampling = Velocity if schedule.prediction == "v_prediction" else Epsilon
        self.model_sampling = sampling(schedule.noise / schedule.signal)
        factors = [[0.1, 0.2, 0.3]] * 4
        self.latent_format = types.SimpleNamespace(latent_rgb_factors=factors, scale=float(config.sample_size))

    def get_dtype(self) -> torch.dtype:
        return torch.float32

    def process_latent_out(self, latents: Tensor) -> Tensor:
        return latents / self.latent_format.scale

    def process_latent_in(self, latents: Tensor) -> Tensor:
        return latents * self.latent_format.scale

    def encode_adm(self, pooled_output: Tensor, width: int, height: int) -> Tensor | None:
        return None


class SDXL(BaseModel):
    def encode_adm(self, pooled_output: Tensor, width: int, height: int) -> Tensor | None:
        sizes = pooled_output.new_tensor([height, width, 0, 0, height, width])
        return torch.cat([pooled_output, sizes.expand(len(pooled_output), -1)], 1)


def _names(unet: nn.Module) -> dict[str, str]:
    return {name: f"inner.{name}" for name, _ in unet.named_parameters()}


class ClipLayer(nn.Module):
    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.self_attn.add_module(name, nn.Linear(width, width))
        self.mlp.add_module("fc1", nn.Linear(width, inner))
        self.mlp.add_module("fc2", nn.Linear(inner, width))
        self.act = (lambda a: a * torch.sigmoid(1.702 * a)) if act == "quick_gelu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        x += self._attend(self.layer_norm1(x))
        x += self.mlp.fc2(self.act(self.mlp.fc1(self.layer_norm2(x))))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        heads = x.shape[-1] // 64
        q, k, v = (
            layer(x).unflatten(-1, (heads, 64)).transpose(1, 2)
            for layer in (self.self_attn.q_proj, self.self_attn.k_proj, self.self_attn.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.self_attn.out_proj(out.transpose(1, 2).flatten(2))


class TextEncoder(nn.Module):
    """The host's SDClipModel: ids in, states of the chosen layer and projected pooled state out."""

    def __init__(self, oracle: nn.Module, before_last: bool) -> None:
        super().__init__()
        config: Any = oracle.config
        self.default = self.layer = -2 if before_last else None
        text = nn.Module()
        text.embeddings, text.encoder = nn.Module(), nn.Module()
        text.embeddings.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        text.embeddings.position_embedding = nn.Embedding(77, config.hidden_size)
        layers = [ClipLayer(config.hidden_size, config.intermediate_size, config.hidden_act) for _ in range(2)]
        text.encoder.layers = nn.ModuleList(layers)
        text.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.transformer = nn.Module()
        self.transformer.text_model = text
        self.transformer.text_projection = nn.Linear(config.hidden_size, 64, bias=False)
        state = {
            key if key.startswith("text_") else f"text_model.{key}": value for key, value in oracle.state_dict().items()
        }
        self.transformer.load_state_dict({k: v for k, v in state.items() if "position_ids" not in k}, strict=False)
        self.end = config.eos_token_id
        self.register_parameter("logit_scale", nn.Parameter(torch.tensor(4.6)))

    def process_tokens(self, tokens: list[list[int]], device: Any) -> tuple[Any, ...]:
        ids = torch.tensor(tokens, device=device)
        places = (ids == self.end).int().argmax(-1)
        embedded = self.transformer.text_model.embeddings.token_embedding(ids)
        return embedded, None, [int(place) + 1 for place in places], []

    def encode(self, tokens: Any) -> tuple[Tensor, Tensor]:
        text = self.transformer.text_model
        embedded, _, counts, _ = self.process_tokens(tokens, "cpu")
        x = embedded.float() + text.embeddings.position_embedding.weight.float()
        kept = []
        for layer in text.encoder.layers:
            x = layer(x)
            kept.append(x.clone())
        final = text.final_layer_norm(x)
        pooled = self.transformer.text_projection(final[range(len(counts)), [count - 1 for count in counts]])
        return (final if self.layer is None else kept[self.layer]), pooled


class CondStage(nn.Module):
    def __init__(self, parts: dict[str, TextEncoder]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def reset_clip_options(self) -> None:
        for part in self.children():
            part.layer = part.default

    def set_clip_options(self, options: dict[str, Any]) -> None:
        for part in self.children():
            part.layer = options.get("layer", part.layer)


class Tokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.start_token, self.end_token = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad_token = tokenizer.pad_token_id


class CLIP:
    def __init__(self, oracle: DiffusersModel, dtype: torch.dtype) -> None:
        names = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[oracle.family]
        encoders = [as_host_module(TextEncoder(e, oracle.is_sdxl), dtype) for e in oracle.text_encoders]
        self.cond_stage_model = CondStage(dict(zip(names, encoders, strict=True)))
        self.patcher, self.layer_idx = ModelPatcher(self.cond_stage_model), None
        tokenizers = (Tokenizer(tokenizer) for tokenizer in oracle.tokenizers)
        self.tokenizer = types.SimpleNamespace(**dict(zip(names, tokenizers, strict=True)))

    def clone(self) -> CLIP:
        other = CLIP.__new__(CLIP)
        other.__dict__ |= {**self.__dict__, "patcher": self.patcher.clone()}
        return other

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0) -> list[str]:
        return self.patcher.add_patches(patches, strength)


def moves_networks(*_: Any, **__: Any) -> None:
    assert torch.is_inference_mode_enabled(), "a weight made in inference mode breaks when it is moved outside of it"


class VAE:
    def decode(self, latents: Tensor) -> Tensor:
        moves_networks()
        return F.interpolate(latents[:, :3].sigmoid(), scale_factor=8.0).movedim(1, -1)

    def encode(self, pictures: Tensor) -> Tensor:
        moves_networks()
        small = F.avg_pool2d(pictures.movedim(-1, 1), 8)
        return torch.cat([small, small[:, :1]], 1)


def loaded(oracle: DiffusersModel, dtype: torch.dtype = torch.float32) -> tuple[ModelPatcher, CLIP, VAE]:
    """MODEL, CLIP and VAE as a checkpoint loader hands them on. Takes over the oracle's UNet: make that one anew."""
    model = (SDXL if oracle.is_sdxl else BaseModel)(oracle, dtype)
    return ModelPatcher(model), CLIP(oracle, dtype), VAE()


def _throw_if_interrupted() -> None:
    if Switches.interrupt:
        Switches.interrupt = False
        raise Interrupted


class ProgressBar:
    shown: list[tuple[int, int]] = []  # noqa: RUF012

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total, self.sent = total, -1

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.total = total or self.total
        if self.sent <= value or value >= self.total:  # newer hosts send nothing of a bar that goes back
            self.sent = value
            self.shown.append((value, self.total))
            _throw_if_interrupted()


def modules(base: Path, fake_io: types.ModuleType) -> dict[str, types.ModuleType]:
    """What ``import`` finds of the host, by name."""

    class WrappersMP(str, enum.Enum):
        APPLY_MODEL = "apply_model"

    class BasicTransformerBlock(nn.Module): ...

    class ResBlock(nn.Module): ...

    content: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.model_management": {
            "InterruptProcessingException": Interrupted,
            "processing_interrupted": lambda: Switches.interrupt,
            "throw_exception_if_processing_interrupted": _throw_if_interrupted,
            "current_loaded_models": [],
            "free_memory": moves_networks,
            "load_models_gpu": moves_networks,
            "cast_to_device": lambda t, device, dtype, copy=False: t.to(device, dtype, copy=copy),
        },
        "comfy.clip_model": {"CLIPLayer": ClipLayer},
        "comfy.lora": {"calculate_weight": calculate_weight},
        "comfy.weight_adapter": {"LoRAAdapter": LoRAAdapter},
        "comfy.model_base": {"SDXL": SDXL},
        "comfy.model_sampling": {
            "ModelSamplingDiscrete": ModelSamplingDiscrete, "EPS": EPS, "V_PREDICTION": V_PREDICTION, "EDM": EDM,
        },
        "comfy.utils": {"unet_to_diffusers": lambda config: config["names"], "ProgressBar": ProgressBar},
        "comfy.patcher_extension": {"WrappersMP": WrappersMP, "get_wrappers_with_key": _told_wrappers},
        "comfy_execution": {},
        "comfy_execution.graph": {"ExecutionBlocker": ExecutionBlocker},
        "comfy.ldm": {},
        "comfy.ldm.modules": {},
        "comfy.ldm.modules.attention": {"attention_pytorch": None, "BasicTransformerBlock": BasicTransformerBlock},
        "comfy.ldm.modules.diffusionmodules": {},
        "comfy.ldm.modules.diffusionmodules.openaimodel": {"ResBlock": ResBlock},
        "folder_paths": _folder_paths(base),
        "server": {"PromptServer": types.SimpleNamespace()},
        "nodes": {"NODE_CLASS_MAPPINGS": {}},
        "aiohttp": {"web": types.SimpleNamespace(Request=object, Response=object, json_response=_answer)},
        "comfy_api": {},
    }  # fmt: skip
    made = {"comfy_api.latest": fake_io}
    for name, members in content.items():
        made[name] = types.ModuleType(name)
        made[name].__dict__.update(members)
    for name, module in made.items():
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(made[parent], leaf, module)
    return made


def _told_wrappers(kind: str, key: str, transformer_options: dict[str, Any]) -> list[Any]:
    found: list[Any] = transformer_options.get("wrappers", {}).get(kind, {}).get(key, [])
    return found


def _answer(content: Any, status: int = 200) -> tuple[Any, int]:
    return content, status


def _folder_paths(base: Path) -> dict[str, Any]:
    known: dict[str, tuple[list[str], set[str]]] = {"loras": ([str(base / "loras")], {".safetensors"})}

    def listed(kind: str) -> list[str]:
        return [p.name for folder in known[kind][0] for p in Path(folder).glob("*")]

    def add(kind: str, folder: str, is_default: bool = False) -> None:
        folders = known.setdefault(kind, ([], set()))[0]
        folders.insert(0 if is_default else len(folders), folder)

    return {
        "models_dir": str(base), "folder_names_and_paths": known, "add_model_folder_path": add,
        "get_folder_paths": lambda kind: known[kind][0][:], "get_filename_list": listed,
        "get_full_path_or_raise": lambda kind, name: str(Path(known[kind][0][0]) / name),
        "get_output_directory": lambda: str(base / "output"),
    }  # fmt: skip


def install(base: Path, fake_io: types.ModuleType, set_item: Callable[[Any, str, Any], None]) -> None:
    """Make the fakes importable; ``set_item`` is pytest's ``monkeypatch.setitem``."""
    for name, module in modules(base, fake_io).items():
        set_item(sys.modules, name, module)
