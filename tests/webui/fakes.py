"""A web UI without a web UI: a pico model in A1111's or Forge's shape, and the host's modules as far as we call them.

The fakes copy the behaviour that makes the hosts dangerous: exceptions of hooks are swallowed, LoRAs are merged lazily
and left in place, a checkpoint of the same architecture is copied into the same parameters, patched weights stay.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from fake_texts import forge_engines, ldm_engines, learned_conditioning
from torch import Tensor, nn

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.naming import ldm_paths


class LdmUnet(nn.Module):
    """diffusers' layers under LDM's module paths. The layers are the same objects, so that all that is done to them
    shows in the prediction."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.inner = [unet]  # in a list, so that its names do not show
        named = {path: module for path, module in unet.named_modules() if module._parameters}
        for name, path in ldm_paths(named).items():
            self._place(path.split("."), named[name])

    def _place(self, parts: list[str], module: nn.Module) -> None:
        parent: nn.Module = self
        for part in parts[:-1]:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]  # type: ignore[assignment]
        parent.add_module(parts[-1], module)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        # On CPUs the hosts' last convolution may leave its output in this order, which cannot be viewed as rows.
        return self._predicted(x, timesteps, context, y).contiguous(memory_format=torch.channels_last)

    def _predicted(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None) -> Tensor:
        unet: Any = self.inner[0]
        if unet.config.addition_embed_type is None:
            return unet(x, timesteps, context, return_dict=False)[0]
        assert y is not None and y.shape == (len(x), unet.config.projection_class_embeddings_input_dim)
        width = 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": y[:, :-width], "time_ids": y[:, -width:]}
        # The hosts' callers embed the sizes, diffusers' network does it by itself.
        embed, unet.add_time_proj = unet.add_time_proj, nn.Identity()
        try:
            return unet(x, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]
        finally:
            unet.add_time_proj = embed


class Checkpoint:
    def __init__(self, name: str) -> None:
        self.filename = self.title = self.name_for_extra = name


class SdModel(nn.Module):
    """What A1111 has in ``shared.sd_model``: of SD1.x and SD2.x ldm's object, of SDXL sgm's."""

    def __init__(self, source: DiffusersModel, name: str = "one.safetensors") -> None:
        super().__init__()
        say_family(self, source)
        self.parameterization = "v" if source.schedule.prediction == "v_prediction" else "eps"
        self.model = nn.Module()
        self.model.diffusion_model = LdmUnet(source.unet)
        self.engines = ldm_engines(source)
        if self.is_sdxl:
            # Behind the text encoders stand those of the picture's size.
            self.conditioner = types.SimpleNamespace(embedders=[*self.engines, object(), object(), object()])
            self.cond_stage_model = self.conditioner
        else:
            self.cond_stage_model = self.engines[0]
        self.alphas_cumprod_original = source.schedule.signal.double() ** 2
        # What the host paints with: cast down, and rescaled to end without signal where a setting asks for it.
        self.alphas_cumprod = (self.alphas_cumprod_original * 0.9).half()
        self.sd_checkpoint_info, self.sd_model_checkpoint = Checkpoint(name), name
        self.text = source.text_encoders[0]
        self.vae = [source.vae]  # in a list: tests compare what is trained

    def get_learned_conditioning(self, prompts: list[str], side: int = 64) -> Any:
        return learned_conditioning(self.engines, prompts, side)

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        vae = self.vae[0]
        return vae.decode(latents / vae.config.scaling_factor).sample

    def encode_first_stage(self, pictures: Tensor) -> Any:
        found = self.vae[0].encode(pictures).latent_dist
        # sgm's first stage draws by chance, and scales.
        return found.sample() * self.vae[0].config.scaling_factor if self.is_sdxl else found

    def get_first_stage_encoding(self, latents: Tensor) -> Tensor:
        return latents if self.is_sdxl else latents * self.vae[0].config.scaling_factor

    @property
    def first_stage_model(self) -> Any:
        vae = self.vae[0]
        return types.SimpleNamespace(encoder=vae.encoder, quant_conv=vae.quant_conv, to=vae.to)

    @property
    def scale_factor(self) -> float:
        return float(self.vae[0].config.scaling_factor)

    def load(self, state: dict[str, Tensor], name: str) -> None:
        """Another checkpoint of the same architecture: copied into the same Parameter objects, as A1111 does."""
        self.load_state_dict(state)
        self.sd_checkpoint_info, self.sd_model_checkpoint = Checkpoint(name), name


def say_family(model: Any, source: DiffusersModel) -> None:
    for family in ("sd1", "sd2", "sdxl"):
        setattr(model, f"is_{family}", source.family == family)


class Lora:
    """A1111's Lora extension (module ``networks``): merges at the layer's forward, leaves the merge."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, dict[nn.Module, Tensor]]] = []

    def load_networks(self, names: list[Any], *strengths: list[float]) -> None:
        self.loaded = [(name, change) for name, change in names]

    @torch.no_grad()
    def network_restore_weights_from_backup(self, module: Any) -> None:
        backup = getattr(module, "network_weights_backup", None)
        if backup is not None:
            module.weight.copy_(backup)

    def network_reset_cached_weight(self, module: Any) -> None:
        module.network_current_names, module.network_weights_backup = (), None

    @torch.no_grad()
    def before_forward(self, module: Any, inputs: Any) -> None:
        """Stands for the patched ``Linear.forward``."""
        wanted = tuple(name for name, _ in self.loaded)
        if getattr(module, "network_weights_backup", None) is None and wanted:
            module.network_weights_backup = module.weight.detach().clone()
        if getattr(module, "network_current_names", ()) != wanted:
            self.network_restore_weights_from_backup(module)
            for _, changes in self.loaded:
                if module in changes:
                    module.weight.add_(changes[module])
            module.network_current_names = wanted

    def attach(self, root: nn.Module) -> None:
        for module in root.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.network_layer_name = "known"
                module.register_forward_pre_hook(self.before_forward)


class Patcher:
    """Forge's ``ModelPatcher`` and its loader: patched weights stay until other patches are asked for."""

    load_device = offload_device = torch.device("cpu")

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.lora_patches: dict[Any, dict[str, Any]] = {}
        if not hasattr(model, "lora_loader"):
            model.lora_loader = Loader(model)
        self.lora_loader = model.lora_loader
        self.refuses: set[str] = set()

    def clone(self) -> Patcher:
        other = Patcher(self.model)
        other.lora_patches, other.refuses = dict(self.lora_patches), self.refuses
        return other

    def add_patches(
        self, *, filename: str, patches: dict[str, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> set[str]:
        known = {name for name, _ in self.model.named_parameters()} - self.refuses
        taken = {key: patch for key, patch in patches.items() if key in known}
        self.lora_patches[(filename, strength_patch, strength_model)] = taken
        return set(taken)


class OldPatcher:
    """``ldm_patched``'s ``ModelPatcher`` (Forge classic, reForge): each clone has patches and a backup of its own."""

    load_device = offload_device = torch.device("cpu")

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.patches: dict[str, list[Any]] = {}
        self.backup: dict[str, nn.Parameter] = {}
        self.refuses: set[str] = set()

    def clone(self) -> OldPatcher:
        other = OldPatcher(self.model)
        other.patches, other.refuses = {key: list(kept) for key, kept in self.patches.items()}, self.refuses
        return other

    def add_patches(
        self, patches: dict[str, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[str]:
        known = {name for name, _ in self.model.named_parameters()} - self.refuses
        for key in known & set(patches):
            self.patches.setdefault(key, []).append((strength_patch, patches[key], strength_model))
        return list(known & set(patches))

    @torch.inference_mode()
    def patch(self) -> None:
        for key, kept in self.patches.items():
            weight = self.backup[key] = self.model.get_parameter(key)
            set_parameter(self.model, key, merged(weight, [(strength, change) for strength, (_, (change,)), _ in kept]))

    def unpatch(self) -> None:
        for key, weight in self.backup.items():
            set_parameter(self.model, key, weight)
        self.backup = {}


def merged(weight: Tensor, patches: list[tuple[float, Tensor]]) -> nn.Parameter:
    """The hosts add in 32 bits, move what they add, and round to what the weight was stored in."""
    whole = weight.float()
    for strength, change in patches:
        assert change.shape == whole.shape
        whole = whole + strength * change.to(whole.device).to(whole.dtype)
    return nn.Parameter(whole.to(weight.dtype), requires_grad=False)


MOVED = "on a GPU a weight that was made in inference mode breaks when it is moved outside of it"


def load_model_gpu(patcher: Any) -> None:
    """Forge refreshes its loader; its forks unpatch other clones of the same model and patch this one."""
    assert torch.is_inference_mode_enabled(), MOVED
    if isinstance(patcher, Patcher):
        patcher.lora_loader.refresh(patcher.lora_patches)
    elif not any(entry.model is patcher for entry in memory.current_loaded_models):
        for entry in [e for e in memory.current_loaded_models if e.model.model is patcher.model]:
            entry.model.unpatch()
            memory.current_loaded_models.remove(entry)
        patcher.patch()
        memory.current_loaded_models.append(types.SimpleNamespace(model=patcher))


def unload_all_models() -> None:
    assert torch.is_inference_mode_enabled(), MOVED
    while memory.current_loaded_models:
        unloaded = memory.current_loaded_models.pop().model
        if isinstance(unloaded, OldPatcher):
            unloaded.unpatch()


def set_parameter(root: nn.Module, key: str, weight: nn.Parameter) -> None:
    path, _, leaf = key.rpartition(".")
    root.get_submodule(path)._parameters[leaf] = weight


class Loader:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.backup, self.loaded = model, {}, "[]"
        self.is_broken = False

    @torch.inference_mode()
    def refresh(self, lora_patches: dict[Any, Any], offload_device: Any = None) -> None:
        wanted = str(list(lora_patches))
        if wanted == self.loaded:
            return
        for key, weight in self.backup.items():
            set_parameter(self.model, key, weight)
        self.backup = {}
        for (_, strength, _), patches in lora_patches.items():
            for key, (_, (change,)) in patches.items():
                weight = self.model.get_parameter(key)
                self.backup.setdefault(key, weight)
                if not self.is_broken:
                    set_parameter(self.model, key, merged(weight, [(strength, change)]))
        self.loaded = wanted


class EPS:
    """ldm_patched's kinds of what a network predicts: classes, of which a model's sampling is made."""


class V_PREDICTION(EPS):
    pass


class ForgeModel:
    """What Forge has in ``shared.sd_model``: made in inference mode, like the host's loader."""

    def __init__(self, source: DiffusersModel, name: str = "one.safetensors", patcher: Any = Patcher) -> None:
        say_family(self, source)
        unet = nn.Module()
        unet.diffusion_model = LdmUnet(source.unet)
        sigmas = source.schedule.noise.double() / source.schedule.signal.double()
        is_old = patcher is OldPatcher
        self.engines = forge_engines(source, is_old)
        if is_old:
            kind = V_PREDICTION if source.schedule.prediction == "v_prediction" else EPS
            unet.model_sampling = type("ModelSampling", (kind,), {"sigmas": sigmas})()
            # These hosts ask an object that they have replaced before, and take SD2.x for SD1.x.
            self.is_sd1, self.is_sd2 = not self.is_sdxl, False
            if self.is_sdxl:
                self.conditioner = types.SimpleNamespace(embedders=[*self.engines, object()])
            else:
                self.cond_stage_model = self.engines[0]
        else:
            unet.predictor = types.SimpleNamespace(sigmas=sigmas, prediction_type=source.schedule.prediction)
            for end, engine in zip(("_l", "_g") if self.is_sdxl else ("",), self.engines, strict=True):
                setattr(self, f"text_processing_engine{end}", engine)
        text = nn.Module()
        for part, engine in zip(("clip_l", "clip_g"), self.engines, strict=False):
            setattr(text, part, engine.network)
        memory.current_loaded_models.clear()
        self.forge_objects = Objects(patcher(unet), clip_of(patcher(text)))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.sd_checkpoint_info = Checkpoint(name)
        with torch.inference_mode():
            for module in [m for root in (unet, text) for m in root.modules()]:
                for leaf, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[leaf] = nn.Parameter(parameter.detach().clone(), requires_grad=False)

    def get_learned_conditioning(self, prompts: list[str], side: int = 64) -> Any:
        with torch.inference_mode():
            memory.load_model_gpu(self.forge_objects.clip.patcher)
        return learned_conditioning(self.engines, prompts, side)

    def prepare(self) -> None:
        """What Forge does right before it samples: load the network with the patches of the patcher in use."""
        with torch.inference_mode():
            memory.load_model_gpu(self.forge_objects.unet)


def clip_of(patcher: Any) -> Any:
    """Forge's text object around a patcher."""
    clip = types.SimpleNamespace(patcher=patcher)
    clip.clone = lambda: clip_of(clip.patcher.clone())
    return clip


class Objects:
    def __init__(self, unet: Any, clip: Any) -> None:
        self.unet, self.clip = unet, clip

    def shallow_copy(self) -> Objects:
        return Objects(self.unet, self.clip)


memory = types.ModuleType("backend.memory_management")
memory.load_model_gpu = load_model_gpu  # type: ignore[attr-defined]
memory.unload_all_models = unload_all_models  # type: ignore[attr-defined]
memory.current_loaded_models = []  # type: ignore[attr-defined]


class Processing:
    """The host's ``p``."""

    cached_c: list[Any] = [None, None]  # noqa: RUF012  # shared by all generations, as in the host
    cached_uc: list[Any] = [None, None]  # noqa: RUF012
    disable_extra_networks = False

    def __init__(self, prompts: list[str], batch_size: int = 1) -> None:
        self.all_prompts, self.batch_size = prompts, batch_size
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: list[str] = []
        self.cached_c, self.cached_uc = Processing.cached_c, Processing.cached_uc

    def comment(self, text: str) -> None:
        self.comments.append(text)


class Plot(types.ModuleType):
    """The module of the host's XYZ plot, as far as it paints: each cell has a copy of the generation, and the plot goes
    on where one has failed."""

    def __init__(self) -> None:
        super().__init__("xyz_grid.py")
        self.axis_options: list[Any] = []
        self.AxisOption = lambda label, *a, **k: types.SimpleNamespace(label=label)

    def draw_xyz_grid(self, p: Processing, xs: list[Any], cell: Callable[..., Any]) -> list[Any]:
        return [cell(x, "", "", place, 0, 0) for place, x in enumerate(xs)]

    def run(self, p: Processing, xs: list[Any], apply: Callable[..., Any], work: Callable[..., Any]) -> list[Any]:
        """What the cells are: ``apply`` is the axis, ``work`` stands for ``process_images``."""

        def cell(x: Any, *_: Any) -> Any:
            pc = copy.copy(p)
            apply(pc, x, xs)
            try:
                return work(pc)
            except Exception as error:
                return error

        return self.draw_xyz_grid(p, xs=xs, cell=cell)


class Params:
    """The host's ``CFGDenoiserParams``."""

    def __init__(self, p: Processing | None, x: Tensor, cond: Tensor | None = None) -> None:
        self.x, self.text_cond = x, cond
        self.denoiser = types.SimpleNamespace(p=p) if p is not None else None


def install(folder: Path) -> dict[str, types.ModuleType]:
    """The host's modules, as far as we import them, by name."""
    made = {name: types.ModuleType(name) for name in ("modules", *(f"modules.{part}" for part in PARTS), "gradio")}
    for part in PARTS:
        setattr(made["modules"], part, made[f"modules.{part}"])
    shared = made["modules.shared"]
    shared.cmd_opts = types.SimpleNamespace()
    shared.opts = types.SimpleNamespace(CLIP_stop_at_last_layers=1)
    shared.state = State()
    shared.sd_model = None
    shared.loaded_hypernetworks = []
    # A1111 has no model here before somebody asks for ``shared.sd_model``.
    made["modules.sd_models"].model_data = types.SimpleNamespace(sd_model=object())
    made["modules.sd_models"].checkpoint_aliases = {}
    made["modules.sd_models"].reload_model_weights = lambda: None
    made["modules.paths"].models_path = str(folder)
    made["modules.sd_unet"].current_unet = None
    made["modules.devices"].without_autocast = nullcontext
    made["modules.devices"].dtype_vae = torch.float32
    made["modules.call_queue"].queue_lock = threading.Lock()
    made["modules.call_queue"].wrap_gradio_gpu_call = lambda work, extra_outputs=None: work
    made["modules.errors"].report = lambda *a, **k: None
    made["modules.extra_networks"].ExtraNetwork = _ExtraNetwork
    made["modules.extra_networks"].extra_network_registry = {}
    made["modules.scripts"].Script = object
    made["modules.scripts"].AlwaysVisible = object()
    return made


class State:
    """The host's ``shared.state``."""

    def __init__(self) -> None:
        self.begin("")
        self.shown: list[Any] = []

    def begin(self, job: str = "(unknown)") -> None:
        self.time_start = time.perf_counter()
        self.interrupted = self.stopping_generation = False
        self.job, self.textinfo = job, ""
        self.job_count = self.sampling_steps = self.sampling_step = 0

    def end(self) -> None:
        self.job = ""

    def interrupt(self) -> None:
        self.interrupted = True

    def assign_current_image(self, picture: Any) -> None:
        self.shown.append(picture)


PARTS = (
    *("shared", "paths", "errors", "extra_networks", "scripts", "script_callbacks", "sd_unet", "devices", "sd_models"),
    *("call_queue",),
)


class _ExtraNetwork:
    def __init__(self, name: str) -> None:
        self.name = name


@contextmanager
def swallowing() -> Iterator[list[Exception]]:
    """How every host calls a hook: whatever it raises is printed, and the generation goes on."""
    swallowed: list[Exception] = []
    try:
        yield swallowed
    except Exception as error:
        swallowed.append(error)


def forget_package() -> None:
    """Unload the extension, so that the next test imports it against its own host."""
    for name in [name for name in sys.modules if name.split(".")[0] == "concept_erasure_webui"]:
        del sys.modules[name]
