"""A small CLIP, trained contrastively on the world's pictures and captions, then frozen.

Two phases. The first is CLIP's own loss. Alone it maps all words of a concept to almost one point, since the pictures
of this small world give it no reason to tell them apart; erasing one word would then erase them all, which no real
text encoder allows. So the second phase goes on with CLIP's loss and also asks the text side to remember its words:
from the state at the end token it must tell which tokens the caption had.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from .data import captions_for, pick, scenes
from .loop import train

PICTURE_STEPS = 2000
STEPS = 1000
"""Steps of the first and of the second phase."""
MEMORY_WEIGHT = 0.3
BATCH = 256
SCENES = 30_000
WIDTH = 64
END = 49407


def new_clip(seed: int = 0) -> CLIPModel:
    """The untrained model: text side 64 wide, 1 head, 2 layers; vision side a ViT on 8-pixel patches."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH, num_hidden_layers=2,
        num_attention_heads=1, max_position_embeddings=77, hidden_act="quick_gelu",
        bos_token_id=49406, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, projection_dim=WIDTH, num_hidden_layers=3, num_attention_heads=4,
        image_size=64, patch_size=8, hidden_act="quick_gelu",
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    config._attn_implementation = "eager"
    return CLIPModel(config)


def normalised(pictures: Tensor) -> Tensor:
    """uint8 pictures [B, 3, 64, 64] as the vision side reads them."""
    return (pictures.float() / 255 - 0.5) / 0.5


def memory_loss(states: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
    """Cross-entropy of telling a caption's tokens from all tokens of the batch, by the state at its end token.

    Args:
        states: text states [B, L, D].
        ids: token ids [B, L].
        embedding: token embedding [V, D], whose rows are the classes.
    """
    rows = torch.arange(len(ids))
    end = states[rows, (ids == END).int().argmax(dim=1)]
    distinct, place = ids.unique(return_inverse=True)
    present = torch.zeros(len(ids), len(distinct)).scatter_(1, place, 1.0)
    scores = F.log_softmax((end @ embedding[distinct].T).float(), dim=1)
    return -(scores * present).sum(dim=1).div(present.sum(dim=1)).mean()


def train_clip(deadline: float | None = None, steps: int = STEPS) -> tuple[CLIPModel, bool]:
    """Train text and vision side together. Returns the model and whether training is complete."""
    model = new_clip()
    drawn, pictures = scenes(1, SCENES)

    def loss_at(step: int, memory_weight: float = 0.0) -> Tensor:
        rng = random.Random(step)
        chosen = pick(step, BATCH, SCENES)
        ids = captions_for([drawn[i] for i in chosen], rng, trim=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(input_ids=ids, pixel_values=normalised(pictures[chosen]), return_loss=True)
            if not memory_weight:
                return out.loss
            embedding = model.text_model.get_input_embeddings().weight
            return out.loss + memory_weight * memory_loss(out.text_model_output.last_hidden_state, ids, embedding)

    def remembering(step: int) -> Tensor:
        return loss_at(PICTURE_STEPS + step, MEMORY_WEIGHT)

    first = train("clip_pictures", model, loss_at, PICTURE_STEPS, peak_rate=1e-3, decay=0.995, deadline=deadline)
    if not first:
        return model.eval(), False
    complete = train("clip", model, remembering, steps, peak_rate=1e-3, decay=0.99, deadline=deadline)
    return model.eval(), complete
