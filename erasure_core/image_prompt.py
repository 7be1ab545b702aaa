"""Prompts by pictures: decoupled cross-attention (IP-Adapter, Ye et al. 2023, arXiv 2308.06721, eq. 5) through hooks.

    Z = Attn(Q, K, V) + Attn(Q, K', V'),   K' = W'_k x,  V' = W'_v x,   x: a few picture tokens

The hooks sit on the canonical layers of each cross-attention, so every loaded model has this branch without code of its
own. Tokens of zeros add exactly nothing, since W'_k and W'_v have no bias: that is how one batch mixes prompts with and
without pictures. Without an adapter's weights the model's own W_k and W_v read the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .delta import weight_of
from .errors import Cancelled, InvalidFile
from .model import Conditioning, LoadedModel, gradient_scale
from .progress import Progress, Report, Silent
from .safe_files import read_tensors
from .schedule import NoiseSchedule

MAX_SIZE = 4 * 2**30
"""Bytes. The largest published adapters take 1 GiB."""
HEAD_WIDTH = 64
SD1_HEADS = 8


@dataclass(frozen=True)
class Projector:
    """From an embedded picture to picture tokens: a linear layer and a layer norm.

    Args:
        weight: [T * D, E]. bias: [T * D].
        norm_weight, norm_bias: [D].
    """

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor

    def __call__(self, embedded: Tensor) -> Tensor:
        """Tokens [B, T, D] of embedded pictures [B, E].

        Raises:
            InvalidFile: the embedding has another width than the adapter was made for.
        """
        if embedded.shape[-1] != self.weight.shape[1]:
            raise InvalidFile(
                f"The image adapter reads embeddings of width {self.weight.shape[1]}, but this CLIP vision model makes "
                f"{embedded.shape[-1]}; choose the vision model that the adapter was made for."
            )
        tokens = F.linear(embedded, self.weight, self.bias).view(len(embedded), -1, len(self.norm_weight))
        return F.layer_norm(tokens, self.norm_weight.shape, self.norm_weight, self.norm_bias)

    def to(self, device: torch.device) -> Projector:
        """The same on a device, in float32."""
        parts = (self.weight, self.bias, self.norm_weight, self.norm_bias)
        return Projector(*(part.float().to(device) for part in parts))


@dataclass(frozen=True)
class ImageAdapter:
    """The frozen weights of an image branch.

    Args:
        keys: W'_k [inner, D] by the canonical name of the attention, ``unet.….attn2``.
        values: W'_v, likewise.
        projector: makes tokens of embedded pictures; ``None`` where tokens are learned.
    """

    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    projector: Projector | None = None

    @classmethod
    def of_model(cls, model: LoadedModel) -> ImageAdapter:
        """The model's own keys and values as an image branch: no file is needed, the tokens have to be learned."""
        names = attention_names(model.layers())
        return cls(
            {name: model.weight(f"{name}.to_k").detach().to(model.device) for name in names},
            {name: model.weight(f"{name}.to_v").detach().to(model.device) for name in names},
        )

    @classmethod
    def read(cls, path: Path, model: LoadedModel) -> ImageAdapter:
        """Read an IP-Adapter in its published layout for a loaded model.

        Raises:
            InvalidFile: no safetensors file, another kind of adapter, or made for another model.
        """
        tensors, _ = read_tensors(path, MAX_SIZE)
        return cls.from_tensors(tensors, model, str(path))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], model: LoadedModel, origin: str) -> ImageAdapter:
        """From a state dict ``image_proj.*``, ``ip_adapter.<i>.to_k_ip.weight``; ``origin`` names it in messages.

        Raises:
            InvalidFile: an adapter of another kind, or of another model.
        """
        projector = _projector(tensors, origin)
        names = attention_names(model.layers())
        found = {kind: _numbered(tensors, kind) for kind in ("to_k_ip", "to_v_ip")}
        for kind, weights in found.items():
            wanted = [weight_of(model.layers()[f"{name}.{kind.removesuffix('_ip')}"]).shape for name in names]
            if [weight.shape for weight in weights] != wanted:
                raise InvalidFile(f"{origin} was made for another model: its {kind} weights do not fit this one.")
            if any(weight.shape[1:] != projector.norm_weight.shape for weight in weights):
                raise InvalidFile(
                    f"{origin} is damaged: its picture tokens have another width than its {kind} weights read; "
                    "get a fresh copy."
                )
        device = model.device
        keys, values = (
            {name: w.to(device) for name, w in zip(names, weights, strict=True)} for weights in found.values()
        )
        return cls(keys, values, projector.to(device))


def _projector(tensors: Mapping[str, Tensor], origin: str) -> Projector:
    """The part of an IP-Adapter's state dict that makes picture tokens.

    Raises:
        InvalidFile: there is none, that of another kind of adapter, or its tensors do not fit together.
    """
    parts = ("proj.weight", "proj.bias", "norm.weight", "norm.bias")
    if any(f"image_proj.{part}" not in tensors for part in parts):
        raise InvalidFile(
            f"{origin} is not a basic IP-Adapter (it has no image_proj.proj and image_proj.norm); "
            "the plus and face kinds are not supported."
        )
    weight, bias, norm_weight, norm_bias = (tensors[f"image_proj.{part}"] for part in parts)
    sound = weight.dim() == 2 and norm_weight.dim() == 1 and weight.numel() and norm_weight.numel()
    fit = bias.shape == weight.shape[:1] and norm_bias.shape == norm_weight.shape
    if not (sound and fit) or len(weight) % len(norm_weight):
        raise InvalidFile(f"{origin} is damaged: its image_proj tensors do not fit together; get a fresh copy.")
    return Projector(weight, bias, norm_weight, norm_bias)


def attention_names(layers: Mapping[str, nn.Module]) -> list[str]:
    """The cross-attentions of a model in the order in which IP-Adapter files number them: down, up, middle."""
    names = [name.removesuffix(".to_k") for name in layers if name.endswith(".attn2.to_k")]

    def place(name: str) -> tuple[int, list[int]]:
        part = next((i for i, block in enumerate(("down", "up", "mid")) if f"unet.{block}_block" in name), 3)
        return part, [int(number) for number in re.findall(r"\d+", name.removesuffix(".attn2"))]

    return sorted(names, key=place)


def _numbered(tensors: Mapping[str, Tensor], kind: str) -> list[Tensor]:
    found = {
        int(m[1]): t for key, t in tensors.items() if (m := re.fullmatch(rf"ip_adapter\.(\d+)\.{kind}\.weight", key))
    }
    return [found[number] for number in sorted(found)]


class ImageBranch:
    """The second attention, hung on a model. It reads ``tokens``, one row for each row of the running batch."""

    def __init__(self, adapter: ImageAdapter, model: LoadedModel) -> None:
        self.adapter, self.family = adapter, model.family
        self.heads: Callable[[str], int] | None = getattr(model, "attention_heads", None)
        self.tokens: Tensor | None = None
        self._queries: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        handles = []
        try:
            for name in self.adapter.keys:
                handles.append(layers[f"{name}.to_q"].register_forward_hook(self._keep_queries(name)))
                handles.append(layers[f"{name}.to_out.0"].register_forward_pre_hook(self._add_attention(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._queries.clear()

    def _keep_queries(self, name: str):  # type: ignore[no-untyped-def]  # torch's hook type is not exported
        def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
            if self.tokens is not None:
                self._queries[name] = output

        return keep

    def _add_attention(self, name: str):  # type: ignore[no-untyped-def]
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self.tokens is None:
                return None
            attended = self.attention(name, self._queries.pop(name), self.tokens)
            return (inputs[0] + attended.to(inputs[0].dtype), *inputs[1:])

        return add

    def attention(self, name: str, queries: Tensor, tokens: Tensor) -> Tensor:
        """Attn(Q, K', V') [B, N, inner] for queries [B, N, inner] and tokens [B, T, D]."""
        tokens = tokens.to(queries.dtype)
        keys = F.linear(tokens, self.adapter.keys[name].to(queries.dtype))
        values = F.linear(tokens, self.adapter.values[name].to(queries.dtype))
        heads = self.heads(name) if self.heads is not None else self._usual_heads(queries.shape[-1])
        q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (queries, keys, values))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _usual_heads(self, width: int) -> int:
        """The heads that the family's own networks have, for models that cannot be asked."""
        return SD1_HEADS if self.family == "sd1" else max(1, width // HEAD_WIDTH)


class ImagePrompted:
    """A loaded model whose conditionings may carry picture tokens; everything else is the model's own.

    The branch has to be attached while this is used.
    """

    def __init__(self, model: LoadedModel, branch: ImageBranch) -> None:
        self.plain, self.branch = model, branch
        self.family, self.schedule = model.family, model.schedule
        self.device, self.dtype, self.latent_shape = model.device, model.dtype, model.latent_shape

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.plain.encode(prompts)

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        # With gradients they stay until the backward pass is over: with checkpointing it runs the layers again.
        self.branch.tokens = conditioning.image
        predicted = self.plain.predict(latents, t, conditioning)
        if not torch.is_grad_enabled():
            self.branch.tokens = None
        return predicted

    def layers(self) -> dict[str, nn.Module]:
        return self.plain.layers()

    def base_weight(self, name: str) -> Tensor:
        return self.plain.base_weight(name)

    def weight(self, name: str) -> Tensor:
        return self.plain.weight(name)

    def trainable(self, checkpointing: bool = False) -> AbstractContextManager[None]:
        return self.plain.trainable(checkpointing)

    def __getattr__(self, name: str) -> Any:
        """What only some loaded models have, such as prompts as embeddings."""
        return getattr(self.plain, name)


def refined(tokens: Tensor, text: Tensor) -> Tensor:
    """Picture tokens rebuilt from the concept's text tokens (Co-Erasing's text-guided refinement).

    softmax(Q K^T / sqrt(D)) V with the picture tokens as Q [T, D] and the text tokens as K and V [L, D]: what has
    nothing to do with the concept, such as the background of the picture, drops out.
    """
    text = text.to(tokens.dtype)
    return torch.softmax(tokens @ text.T / tokens.shape[-1] ** 0.5, dim=-1) @ text


def noise_target(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the model should predict for z_t = a x0 + s n, by its kind of prediction; all [B, C, H, W]."""
    if schedule.prediction == "epsilon":
        return noise
    a, s = schedule.scales(t)
    return a * noise - s * x0


def invert_pictures(
    model: ImagePrompted,
    latents: Tensor,
    generator: torch.Generator,
    tokens: int = 4,
    steps: int = 150,
    batch: int = 8,
    learning_rate: float = 0.05,
    progress: Progress | None = None,
) -> Tensor:
    """Learn picture tokens that make the frozen model paint given pictures (after textual inversion, Gal et al. 2023).

    Args:
        model: inside ``trainable``, its branch attached; deltas that hang on it are off.
        latents: clean pictures, [N, C, H, W].
        generator: of pictures, timesteps and noise.
        tokens: how many for each picture.
        steps: Adam steps.
        batch: pictures in one step.
        learning_rate: of Adam, as a share of the spread of the text tokens.
        progress: reports and cancellation.

    Returns:
        Tokens [N, T, D].

    Raises:
        Cancelled: the user stopped.
    """
    progress = progress or Silent()
    with torch.no_grad():
        empty = model.encode([""])
    width, spread = empty.context.shape[-1], float(empty.context.float().std())
    start = 0.1 * spread * torch.randn(1, tokens, width, generator=generator)
    learned = nn.Parameter(start.repeat(len(latents), 1, 1).to(model.device))
    optimizer = torch.optim.Adam([learned], lr=learning_rate * spread, betas=(0.9, 0.99))
    for step in range(steps):
        if progress.cancelled():
            raise Cancelled("Stopped while learning picture tokens.")
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        t = torch.randint(len(model.schedule), (batch,), generator=generator).to(model.device)
        x0 = latents[chosen.to(latents.device)].to(model.device)
        noise = torch.randn(x0.shape, generator=generator).to(model.device)
        text = empty[[0] * batch]
        prompt = Conditioning(text.context, text.ends, text.pooled, learned[chosen.to(model.device)])
        predicted = model.predict(model.schedule.add_noise(x0, noise, t), t, prompt)
        loss = F.mse_loss(predicted, noise_target(model.schedule, x0, noise, t))
        optimizer.zero_grad()
        (loss * gradient_scale(model.dtype)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress.update(Report("learning picture tokens", step + 1, steps))
    return learned.detach()
