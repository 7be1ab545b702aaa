"""An IP-Adapter for the bundled model, so that pictures can be prompts: trained with all else frozen.

The published recipe (Ye et al. 2023, arXiv 2308.06721): a linear layer and a norm make tokens of what CLIP sees in the
picture, a second pair of keys and values in each cross-attention reads them, the loss is that of the denoiser. Half of
the captions are empty, else the adapter could leave to them what the picture shows.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.image_prompt import ImageAdapter, ImageBranch, ImagePrompted, Projector, attention_names, noise_target
from erasure_core.model import Conditioning

from ..adapter_quality import ADAPTER, embedded
from ..captions import caption
from ..painting import load_model
from ..scene import Scene
from ..tokens import MODEL_DIR
from .data import pick, scenes
from .export import write_sums
from .latents import encode
from .loop import train

STEPS = 2000
BATCH = 64
PEAK_RATE = 2e-3
SEED = 6
SCENES = 20_000
ENCODED_AT_ONCE = 100
TOKENS = 4
DROPPED_PICTURES = 0.05
DROPPED_CAPTIONS = 0.5


class AdapterNet(nn.Module):
    """The adapter's weights as parameters; its keys and values start as the model's own.

    Args:
        model: what it is for.
        embedding: width of an embedded picture.
    """

    def __init__(self, model: DiffusersModel, embedding: int) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.names = attention_names(model.layers())
        width = model.weight(f"{self.names[0]}.to_k").shape[1]
        self.proj, self.norm = nn.Linear(embedding, TOKENS * width), nn.LayerNorm(width)
        self.keys, self.values = (
            nn.ParameterList([model.weight(f"{name}.{kind}").detach().clone() for name in self.names])
            for kind in ("to_k", "to_v")
        )

    @property
    def adapter(self) -> ImageAdapter:
        """The image branch that reads the parameters, as they change."""
        projector = Projector(self.proj.weight, self.proj.bias, self.norm.weight, self.norm.bias)
        keys, values = (dict(zip(self.names, each, strict=True)) for each in (self.keys, self.values))
        return ImageAdapter(keys, values, projector)

    def published(self) -> dict[str, Tensor]:
        """The weights in the published layout, which numbers a network's attentions, of which each second one looks at
        the prompt."""
        parts = {"proj": self.proj, "norm": self.norm}
        tensors = {
            f"image_proj.{part}.{key}": t for part, layer in parts.items() for key, t in layer.state_dict().items()
        }
        for place in range(len(self.names)):
            tensors[f"ip_adapter.{2 * place + 1}.to_k_ip.weight"] = self.keys[place]
            tensors[f"ip_adapter.{2 * place + 1}.to_v_ip.weight"] = self.values[place]
        return {key: tensor.detach().half().contiguous() for key, tensor in tensors.items()}


def _latents(model: DiffusersModel, pictures: Tensor) -> Tensor:
    vae: Any = model.vae
    batches = tqdm(torch.split(pictures, ENCODED_AT_ONCE), desc="encoding", mininterval=15)
    # A clone is no inference tensor, which no gradient could come from.
    return torch.cat([encode(vae, some) * vae.config.scaling_factor for some in batches]).clone()


def _captions(drawn: list[Scene], rng: random.Random) -> list[str]:
    return ["" if rng.random() < DROPPED_CAPTIONS else caption(scene, rng) for scene in drawn]


def train_image_adapter(
    deadline: float | None = None, steps: int = STEPS, count: int = SCENES, folder: Path = MODEL_DIR
) -> bool:
    """Train on ``count`` scenes and write the adapter into the model's folder. Returns whether training is complete."""
    model = load_model()
    drawn, pictures = scenes(SEED, count)
    latents, seen = _latents(model, pictures), embedded(pictures)
    net = AdapterNet(model, seen.shape[1])
    adapter = net.adapter
    projector = adapter.projector
    assert projector is not None
    branch = ImageBranch(adapter, model)
    prompted = ImagePrompted(model, branch)

    def loss_at(step: int) -> Tensor:
        chosen = pick(step, BATCH, count)
        text = model.encode(_captions([drawn[i] for i in chosen], random.Random(step)))
        shown = (torch.rand(BATCH, 1, 1) >= DROPPED_PICTURES).float()
        prompt = Conditioning(text.context.detach(), text.ends, None, shown * projector(seen[chosen]))
        t, noise = torch.randint(len(model.schedule), (BATCH,)), torch.randn(BATCH, *model.latent_shape)
        predicted = prompted.predict(model.schedule.add_noise(latents[chosen], noise, t), t, prompt)
        return F.mse_loss(predicted, noise_target(model.schedule, latents[chosen], noise, t))

    with model.trainable(), branch.attached(model.layers()):
        complete = train("image_adapter", net, loss_at, steps, peak_rate=PEAK_RATE, decay=0.995, deadline=deadline)
    if complete:
        save_file(net.published(), folder / ADAPTER.name)
        write_sums(folder)
    return complete
