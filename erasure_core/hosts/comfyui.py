"""A model as ComfyUI has loaded it: MODEL, CLIP and VAE of a graph, with the LoRAs that the graph has put on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..delta import weight_of
from ..effort import KEPT, PICTURES
from ..errors import ModelError
from ..model import PATCH, Conditioning
from ..schedule import NoiseSchedule
from .autoencoder import checked_latents, checked_pictures
from .comfyui_weights import (
    HostWeights,
    cancellable,
    constant,
    interrupt_cancels,
    lent,
    of_a_copy,
    out_of_place,
    refuse_quantised,
)
from .families import TEXT_ENCODERS, latent_side
from .token_rows import Marks, ends_of, framed
from .training import recomputing

TEXT_PARTS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}
"""ComfyUI's names of a family's text encoders, in the order in which their outputs are joined."""
USUAL_BATCH = 8
"""Pictures in one step of a training, for which room is made."""
VAE_CURE = "connect another VAE, or start ComfyUI with --fp32-vae"
CONTEXT_FAMILIES = {768: "sd1", 1024: "sd2"}
UNET = "diffusion_model."
WRAPPER_KEY = "concept_erasure"
"""Begins the keys of our own wrappers around the host's sampling."""
LOAD_STATE = ("current_weight_patches_uuid", "device", "model_loaded_weight_memory")
"""Attributes of a network that change when the host loads, moves or patches it."""


class ComfyModel:
    """A ``PromptModel`` and ``PictureReader`` over objects of a ComfyUI graph. Never changes them.

    Args:
        patcher: MODEL; ``None`` where only text encoders are looked at.
        clip: CLIP; ``None`` where only the diffusion network is looked at.
        vae: VAE; ``None`` where no pictures are wanted.
        resolution: width and height of training pictures in pixels; 0 takes what the model was made for.

    Raises:
        ModelError: a kind of model that is not supported.
    """

    def __init__(self, patcher: Any, clip: Any = None, vae: Any = None, resolution: int = 0) -> None:
        self.patcher, self.clip, self.vae = patcher, clip, vae
        self.family = _family(patcher.model) if patcher is not None else _text_family(clip)
        side = resolution // PATCH if resolution else self._made_for()
        if not side or resolution % PATCH:
            raise ModelError(
                f"The resolution {resolution} is no multiple of {PATCH} pixels; 0 takes what the model was made for."
            )
        self.latent_shape = (4, side, side)
        self.device: torch.device = (patcher or clip.patcher).load_device
        self.dtype: torch.dtype = _compute_dtype(patcher.model) if patcher is not None else torch.float32
        self.text_parts = TEXT_PARTS[self.family] if clip is not None else ()
        self._check_text()
        self._schedule: NoiseSchedule | None = None
        self._layers: dict[str, nn.Module] = {}
        self._keys: dict[str, str] = {}
        self._lent = False
        self._held: dict[str, tuple[list[Any], HostWeights]] = {}

    @property
    def schedule(self) -> NoiseSchedule:
        if self._schedule is None:
            self._schedule = _schedule(self._unet_patcher().get_model_object("model_sampling"))
        return self._schedule

    def _made_for(self) -> int:
        """Side of the latents that the model was made for. Asked of every MODEL, also of those whose schedule is not
        supported."""
        sampling = None if self.patcher is None else self.patcher.get_model_object("model_sampling")
        return latent_side(self.family, _predicted(sampling))

    @property
    def reading(self) -> str:
        """Which layer of the text encoder the graph reads: *CLIP Set Last Layer* chooses one."""
        return "" if self.clip is None else f"layer {self.clip.layer_idx}"

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        rows, ends = self.token_rows(self.tokenize(prompts))
        return self._encode([ids.tolist() for ids in rows], ends)

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids without begin, end and padding. Brackets and weights have no meaning here: all is text."""
        tokenizer = self._tokenizers()[0]
        return [list(tokenizer.tokenizer(prompt)["input_ids"][1:-1]) for prompt in prompts]

    def detokenize(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizers()[0].tokenizer.decode(list(ids))
        return text.strip()

    def token_rows(self, rows: Sequence[Sequence[int]]) -> tuple[list[Tensor], tuple[int, ...]]:
        """Whole rows of ids [B, 77] for each text encoder, with the place of each end token.

        Raises:
            PromptTooLong: a row has more ids than the text encoders read at once.
        """
        marks = [Marks(t.start_token, t.end_token, t.pad_token) for t in self._tokenizers()]
        return [framed(rows, own, self.detokenize) for own in marks], ends_of(rows)

    def token_tables(self) -> list[Tensor]:
        """Input embeddings [V, D] of each text encoder, float32."""
        weights = self._weights("text")
        keys = (f"{part}.transformer.text_model.embeddings.token_embedding.weight" for part in self.text_parts)
        with torch.inference_mode(False), torch.no_grad():
            return [weights.effective(key).to(self.device, torch.float32, copy=True) for key in keys]

    def encode_embeddings(self, embeddings: Sequence[Tensor], ends: Sequence[int]) -> Conditioning:
        return self._encode(list(embeddings), tuple(ends))

    def _encode(self, rows: Sequence[Any], ends: tuple[int, ...]) -> Conditioning:
        """Run the text encoders as the host's CLIP does, on ids or on token embeddings."""
        if not self._lent:
            with self.trainable(), torch.no_grad():
                return self._encode(rows, ends)
        root = self._text_root()
        root.reset_clip_options()
        root.set_clip_options({"execution_device": self.device})
        if self.clip.layer_idx is not None:
            root.set_clip_options({"layer": self.clip.layer_idx})
        contexts, pooled = [], None
        for part, tokens in zip(self.text_parts, rows, strict=True):
            encoder = getattr(root, part)
            given = isinstance(tokens, Tensor)
            with (
                _embeddings_instead(encoder, tokens, ends) if given else ExitStack(),
                _reading_at(encoder, self.device),
                interrupt_cancels(),
            ):
                context, pooled = encoder.encode(tokens)[:2]
            contexts.append(context)
        joined = torch.cat(contexts, dim=-1).to(self.device)
        return Conditioning(
            joined, ends, pooled.to(self.device) if self.family == "sdxl" and pooled is not None else None
        )

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        if not self._lent:
            with self.trainable(), torch.no_grad():
                predicted: Tensor = self.predict(latents, t, conditioning)
                return predicted
        host = self._unet_patcher().model
        added = None
        if conditioning.pooled is not None:
            height, width = (8 * side for side in latents.shape[-2:])
            added = host.encode_adm(pooled_output=conditioning.pooled, width=width, height=height)
            added = added.to(self.device, self.dtype)
        with interrupt_cancels():
            prediction: Tensor = host.diffusion_model(
                latents.to(self.device, self.dtype),
                t.to(self.device).float(),
                context=conditioning.context.to(self.device, self.dtype),
                y=added,
                transformer_options={"optimized_attention_override": _differentiable_attention},
            )
            return prediction.float()

    def layers(self) -> dict[str, nn.Module]:
        if not self._layers:
            if self.patcher is not None:
                self._find_unet_layers()
            for name, part in zip(TEXT_ENCODERS, self.text_parts, strict=False):
                self._find_text_layers(name, part)
        return self._layers

    def key(self, name: str) -> str:
        """ComfyUI's state-dict key of a layer's weight."""
        self.layers()
        return self._keys[name]

    def base_weight(self, name: str) -> Tensor:
        plain = self._plain(name)
        return self._weights_of(name).base(self.key(name)) if plain is None else plain

    def is_quantised(self, name: str) -> bool:
        """Whether a layer's weight is stored as something else than plain floating-point numbers."""
        return self._plain(name) is None and self._weights_of(name).is_quantised(self.key(name))

    def stored_at(self, name: str) -> int:
        """The address of a layer's unpatched weight: another one after a model was loaded anew or moved."""
        weight = self._stored(name)
        try:
            return weight.data_ptr()
        except RuntimeError:  # a quantised weight has no memory of its own
            return id(weight)

    def _patcher_of(self, name: str) -> Any:
        return self._unet_patcher() if name.startswith("unet.") else self.clip.patcher

    def _stored(self, name: str) -> Tensor:
        """A layer's unpatched weight, as ``get_key_patches`` finds it, without asking for every key of the network:
        that takes longer than to recognise a base."""
        key, patcher = self.key(name), self._patcher_of(name)
        weight: Tensor = weight_of(self.layers()[name])
        if key in patcher.backup:
            weight = patcher.backup[key].weight
        if key in getattr(patcher, "hook_backup", ()):
            weight = patcher.hook_backup[key][0]
        return weight

    def _plain(self, name: str) -> Tensor | None:
        """``_stored`` where it is plain numbers; ``None`` where only the host's own list of keys tells what a layer
        holds: it converts its weight, or is lent to a training, or something is hung into the network."""
        layer, patcher = self.layers()[name], self._patcher_of(name)
        if self._lent or hasattr(layer, "convert_weight") or getattr(patcher, "is_injected", False):
            return None
        weight = self._stored(name)
        return weight if type(weight) in (Tensor, nn.Parameter) else None

    def weight(self, name: str) -> Tensor:
        held = self._weights_of(name).effective(self.key(name))
        # The host's own tensors are of inference mode; methods compute with this one in trainings.
        plain = type(held) in (Tensor, nn.Parameter)
        return constant(held) if plain and held.is_inference() else held

    def other_parameters(self) -> dict[str, Tensor]:
        """The parameters that are no layer weights (biases, norms, embeddings), of the UNet by diffusers' names, of
        text encoders by canonical ones."""
        weights, known = self._weights("unet"), {self.key(name) for name in self.layers()}
        found = {ours: UNET + theirs for ours, theirs in _diffusers_names(self._unet_patcher().model).items()}
        others = {ours: weights.base(key) for ours, key in found.items() if key in set(weights) - known}
        for name, part in zip(TEXT_ENCODERS, self.text_parts, strict=False):
            texts, start = self._weights("text"), f"{part}.transformer."
            keys = [key for key in texts if key.startswith(f"{start}text_model.") and key not in known]
            others |= {f"{name}.{key.removeprefix(start)}": texts.base(key) for key in keys}
        return others

    @contextmanager
    def trainable(self, checkpointing: bool = False) -> Iterator[None]:
        if self._lent:
            raise RuntimeError("trainable() is entered twice")
        self._refuse_untrainable()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            self._enter_networks(stack, checkpointing)
            self._lent = True
            try:
                yield
            finally:
                self._lent = False

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, uint8 [B, 3, H, W]. Not inside ``trainable`` on a GPU: the host moves networks to make room."""
        if self.vae is None:
            raise ModelError("No VAE is connected, so no pictures can be shown.")
        with as_the_host(), interrupt_cancels():
            pictures = self.vae.decode(self._unet_patcher().model.process_latent_out(latents.clone()))
        return checked_pictures(pictures.movedim(-1, 1).float() * 255, self, VAE_CURE)

    def latents_of(self, pictures: Tensor) -> Tensor:
        """Clean latents [B, C, h, w] of pictures, uint8 [B, 3, H, W]; as ``decode``, not inside ``trainable``."""
        if self.vae is None:
            raise ModelError("No VAE is connected, so no pictures can be read.")
        with as_the_host(), interrupt_cancels():
            encoded = self.vae.encode(pictures.movedim(1, -1).float() / 255)
            latents: Tensor = self._unet_patcher().model.process_latent_in(encoded.clone())
            latents = latents.float().to(self.device)
        return checked_latents(latents.clone(), self, VAE_CURE)

    def _enter_networks(self, stack: ExitStack, checkpointing: bool) -> None:
        import comfy.model_management as mm

        if self.device.type != "cpu":
            with as_the_host():
                self._make_room()
            self._held.clear()
        if hasattr(mm, "in_training"):
            stack.callback(setattr, mm, "in_training", mm.in_training)
            mm.in_training = True
        if self.patcher is not None:
            unet = self.patcher.model.diffusion_model
            stack.enter_context(lent(unet, self._weights("unet"), self.device, self.dtype, keep=not checkpointing))
            if checkpointing:
                stack.enter_context(recomputing(_of_kinds(unet, _blocks()), cancellable))
        if self.clip is not None:
            text, weights = self._text_root(), self._weights("text")
            stack.enter_context(lent(text, weights, self.device, torch.float32, keep=not checkpointing))
            stack.enter_context(out_of_place(text))
            if checkpointing:  # what is stored in 16 bits is there in 32 for one layer at a time
                blocks = _of_kinds(text, _text_blocks())
                stack.enter_context(recomputing(blocks, lambda forward: cancellable(of_a_copy(forward))))

    def _make_room(self) -> None:
        """Have the host load both networks, and leave room beside them: it reckons with a picture, and keeps other
        models where it has room for one."""
        import comfy.model_management as mm

        wanted = [part for part in (self.patcher, self.clip and self.clip.patcher) if part is not None]
        ours = [one for one in mm.current_loaded_models if any(_shares_network(one.model, part) for part in wanted)]
        height, width = self.latent_shape[1:]
        least = PICTURES * height * width * KEPT[self.family][1]
        mm.free_memory(USUAL_BATCH * least, self.device, ours)
        mm.load_models_gpu(wanted, memory_required=least)

    def _refuse_untrainable(self) -> None:
        """Raises ModelError with one sentence for what cannot be trained."""
        if self.clip is None:
            raise ModelError("Erasing needs the text encoder too: connect CLIP.")
        if self.patcher is not None:
            self.refuse_unseen()
            channels = self.patcher.model.model_config.unet_config["in_channels"]
            if channels != 4:
                raise ModelError(
                    f"This UNet reads {channels} channels (an inpainting or editing model), so it cannot be trained; "
                    "erase on the model it was made from and apply the file here."
                )
            refuse_quantised(self._weights("unet"))
        refuse_quantised(self._weights("text"))

    def refuse_unseen(self) -> None:
        """Raises ModelError for changes of MODEL that are no patches of weights: the host makes them while it samples,
        and nothing here would see them."""
        kinds = getattr(self.patcher, "wrappers", {}).values()
        if any(key.startswith(WRAPPER_KEY) for by_key in kinds for key in by_key):
            raise ModelError(
                "MODEL carries an erasure for a part of the sampling only, which counts while the host samples and "
                "nowhere else: connect the model from before that Apply Erasure, or set its start to 0 and end to 1."
            )
        if any(getattr(self.patcher, "injections", {}).values()):
            raise ModelError(
                "MODEL carries a LoRA in bypass mode, which counts while the host samples and nowhere else: load it "
                "with the ordinary Load LoRA."
            )

    def _unet_patcher(self) -> Any:
        if self.patcher is None:
            raise ModelError("No MODEL is connected.")
        return self.patcher

    def _text_root(self) -> Any:
        if self.clip is None:
            raise ModelError("No CLIP is connected.")
        return self.clip.cond_stage_model

    def _tokenizers(self) -> list[Any]:
        self._text_root()
        return [getattr(self.clip.tokenizer, part) for part in self.text_parts]

    def _check_text(self) -> None:
        if self.clip is None:
            return
        there = [name for name, part in self._text_root().named_children() if hasattr(part, "transformer")]
        if sorted(there) != sorted(self.text_parts):
            raise ModelError(
                f"CLIP and MODEL do not belong together: {self.family} reads {' and '.join(self.text_parts)}, and this "
                f"CLIP holds {' and '.join(there) or 'no text encoder that is known'}."
            )

    def _weights_of(self, name: str) -> HostWeights:
        return self._weights("unet" if name.startswith("unet.") else "text")

    def _weights(self, kind: str) -> HostWeights:
        """The weights as they are now; read anew when the host has loaded, moved or patched anything meanwhile."""
        patcher, prefix = (self._unet_patcher(), UNET) if kind == "unet" else (self.clip.patcher, "")
        model = patcher.model
        now = [patcher.patches_uuid, *(getattr(model, name, None) for name in LOAD_STATE)]
        if kind not in self._held or (self._held[kind][0] != now and not self._lent):
            self._held[kind] = now, HostWeights(patcher, prefix)
        return self._held[kind][1]

    def _find_unet_layers(self) -> None:
        model = self._unet_patcher().model
        modules = dict(model.diffusion_model.named_modules())
        for ours, theirs in _diffusers_names(model).items():
            path, _, leaf = theirs.rpartition(".")
            if leaf == "weight" and isinstance(modules.get(path), (nn.Linear, nn.Conv2d)):
                name = "unet." + ours.removesuffix(".weight")
                self._layers[name], self._keys[name] = modules[path], UNET + theirs

    def _find_text_layers(self, name: str, part: str) -> None:
        for path, module in getattr(self._text_root(), part).transformer.named_modules():
            # The projection of CLIP-L is there but nothing reads it.
            wanted = path.startswith("text_model.") or (path == "text_projection" and part == "clip_g")
            if wanted and isinstance(module, nn.Linear):
                self._layers[f"{name}.{path}"] = module
                self._keys[f"{name}.{path}"] = f"{part}.transformer.{path}.weight"


def _family(model: Any) -> str:
    """Which family a loaded network belongs to.

    Raises:
        ModelError: none that is supported.
    """
    import comfy.model_base

    config = model.model_config.unet_config
    if isinstance(model, comfy.model_base.SDXL):
        return "sdxl"
    family = CONTEXT_FAMILIES.get(config.get("context_dim"))
    if family is None or "num_res_blocks" not in config or config.get("adm_in_channels") is not None:
        raise ModelError(f"Models of this kind ({type(model).__name__}) are not supported; SD1.x, SD2.x and SDXL are.")
    return family


def _text_family(clip: Any) -> str:
    for family in ("sdxl", "sd2", "sd1"):
        if all(hasattr(clip.cond_stage_model, part) for part in TEXT_PARTS[family]):
            return family
    kind = type(clip.cond_stage_model).__name__
    raise ModelError(f"Text encoders of this kind ({kind}) are not supported; those of SD1.x, SD2.x and SDXL are.")


def _compute_dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = model.manual_cast_dtype or model.get_dtype()
    return dtype


def _diffusers_names(model: Any) -> dict[str, str]:
    """The UNet's parameters: diffusers' names to those of ComfyUI's own module."""
    import comfy.utils

    names: dict[str, str] = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    # One layer is listed under two names; diffusers' SDXL calls it add_embedding.
    return {ours: theirs for ours, theirs in names.items() if not ours.startswith("class_embedding.")}


def _schedule(sampling: Any) -> NoiseSchedule:
    """The host's noise schedule, with upstream ModelSampling nodes applied.

    ComfyUI's x is x0 + sigma n and its network is given x / sqrt(1 + sigma^2): exactly our a x0 + s n.
    """
    import comfy.model_sampling as ms

    edm: tuple[type, ...] = (getattr(ms, "EDM", type(None)), getattr(ms, "ModelSamplingContinuousEDM", type(None)))
    # Distilled models (LCM, X0) are a kind of EPS that reads its network's output in another way, or at fewer sigmas.
    rules = {getattr(kind, "calculate_denoised", None) for kind in (ms.EPS, ms.V_PREDICTION)}
    if (
        not isinstance(sampling, ms.ModelSamplingDiscrete)
        or not isinstance(sampling, ms.EPS)
        or isinstance(sampling, edm)
        or getattr(type(sampling), "calculate_denoised", None) not in rules
        or getattr(sampling, "num_timesteps", len(sampling.sigmas)) != len(sampling.sigmas)
    ):
        raise ModelError("This model's noise schedule is not supported; those of SD1.x, SD2.x and SDXL are.")
    sigmas = sampling.sigmas.detach().cpu().double()  # in this order: Apple's devices have no such numbers
    signal = (1 + sigmas**2).rsqrt()
    return NoiseSchedule(signal.float().clone(), (sigmas * signal).float().clone(), _predicted(sampling))


def _predicted(sampling: Any) -> str:
    import comfy.model_sampling as ms

    return "v_prediction" if isinstance(sampling, ms.V_PREDICTION) else "epsilon"


def _of_kinds(root: nn.Module, kinds: tuple[type, ...]) -> list[nn.Module]:
    return [module for module in root.modules() if isinstance(module, kinds)]


def _blocks() -> tuple[type, ...]:
    from comfy.ldm.modules.attention import BasicTransformerBlock
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    return BasicTransformerBlock, ResBlock


def _text_blocks() -> tuple[type, ...]:
    from comfy.clip_model import CLIPLayer

    return (CLIPLayer,)


def _shares_network(patcher: Any, other: Any) -> bool:
    """Whether a patcher, which may be gone by now, is of the same network as another."""
    return patcher is not None and patcher.model is other.model


def _differentiable_attention(_: Any, *inputs: Any, **named: Any) -> Tensor:
    """Attention that has a backward, whichever one the host was started with."""
    from comfy.ldm.modules.attention import attention_pytorch

    out: Tensor = attention_pytorch(*inputs, **named)
    return out


def as_the_host() -> torch.inference_mode:
    """Around all that may move a network: in the mode in which the host made it, or the network breaks for everyone.

    Moved in another mode, a weight is half an inference tensor: neither the host nor a training can read it again
    ("Inference tensors do not track version counter"). What comes out belongs to inference mode; clone it to train.
    """
    return torch.inference_mode()


@contextmanager
def _reading_at(encoder: Any, device: torch.device) -> Iterator[None]:
    """Inside, a text encoder looks its tokens up on ``device``: the host's own choice is where the table is stored,
    which is the CPU where it has moved the encoder out of the way."""
    own, before = encoder.process_tokens, encoder.__dict__.get("process_tokens")
    encoder.process_tokens = lambda tokens, _: own(tokens, device)
    try:
        yield
    finally:
        del encoder.process_tokens
        if before is not None:
            encoder.process_tokens = before


@contextmanager
def _embeddings_instead(encoder: Any, embeddings: Tensor, ends: Sequence[int]) -> Iterator[None]:
    """Inside, a text encoder reads these token embeddings [B, at most 77, D], whatever tokens it is given."""

    def prepared(tokens: Any, device: Any) -> tuple[Tensor, Tensor, list[int], list[Any]]:
        places = torch.arange(embeddings.shape[1], device=device)
        attended = (places <= torch.tensor(ends, device=device)[:, None]).long()
        return embeddings.to(device, torch.float32), attended, [end + 1 for end in ends], []

    # The host adds one row for each of 77 places; the text side is causal, so that fewer places read the same.
    table = encoder.transformer.text_model.embeddings.position_embedding
    rows = table._parameters["weight"]
    encoder.process_tokens = prepared
    table._parameters["weight"] = rows[: embeddings.shape[1]]
    try:
        yield
    finally:
        table._parameters["weight"] = rows
        del encoder.process_tokens
