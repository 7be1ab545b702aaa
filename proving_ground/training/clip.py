"""A small CLIP, trained contrastively on the world's pictures and captions, then frozen.

Two phases. The first is CLIP's own loss. Alone it maps all words of a concept to almost one point, since the pictures
of this small world give it no reason to tell them apart; erasing one word would then erase them all, which is not so
with any real text encoder. So the second phase goes on with CLIP's loss and also keeps words apart: saying one thing
of a caption by another word must move the text states almost as far as saying another thing. CLIP's projection, which
is not part of what the UNet reads, still brings the words together for the comparison with pictures. The model is a
point between the two phases' weights (interpolated as in WiSE-FT, Wortsman et al. 2022), which sets how near the words
of a concept are: `python -m proving_ground words` prints it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from ..captions import caption
from ..lexicon import COLOUR_NAMES, OBJECT_NAMES, STYLE_NAMES
from ..scene import Scene, phrases
from ..tokens import token_ids
from .data import captions_for, pick, scenes
from .loop import mixed_precision, train
from .state import load_average

PICTURE_STEPS = 2000
STEPS = 700
"""Steps of the first and of the second phase."""
BLEND = 0.7
"""Share of the second phase in the final weights."""
APART_WEIGHT = 5.0
APART = 0.7
"""Least distance of two words of a concept, as a share of the distance to another concept's word."""
TWINS = 128
"""Captions of a batch that are said in other words."""
BATCH = 256
SCENES = 30_000
WIDTH = 64
END = 49407
PICTURE_MEAN = PICTURE_SPREAD = 0.5
PICTURE_CONFIG = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 64, "width": 64},
    "size": {"shortest_edge": 64},
    "image_mean": [PICTURE_MEAN] * 3,
    "image_std": [PICTURE_SPREAD] * 3,
}
"""How the vision side wants pictures, for libraries that read its folder: not as CLIP's own does."""
KINDS = {"object": OBJECT_NAMES, "colour": COLOUR_NAMES, "style": STYLE_NAMES}


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
    return (pictures.float() / 255 - PICTURE_MEAN) / PICTURE_SPREAD


def said_otherwise(scene: Scene, rng: random.Random) -> tuple[Scene, Scene]:
    """The scene with one thing's object, colour or style said by another of its words, and with another concept there.

    Neither is drawn; they only give captions.
    """
    place, kind = rng.randrange(len(scene.things)), rng.choice(("object", "colour", "style"))
    thing = scene.things[place]
    name, say = getattr(thing, kind), getattr(thing, f"{kind}_say")
    another_say = rng.choice([i for i in range(len(phrases(name))) if i != say])
    another_name = rng.choice([other for other in KINDS[kind] if other != name])

    def changed(**fields: Any) -> Scene:
        things = list(scene.things)
        things[place] = replace(thing, **fields)
        return replace(scene, things=tuple(things))

    return changed(**{f"{kind}_say": another_say}), changed(**{kind: another_name})


def _read(text_model: nn.Module, ids: Tensor) -> Tensor:
    """What is compared: the state at the end token (and so in all padding), and the mean state before it, [2, B, D]."""
    states = text_model(ids).last_hidden_state.float()
    end = (ids == END).int().argmax(dim=1)
    before = (torch.arange(ids.shape[1]) < end[:, None]).float()[..., None]
    return torch.stack([states[torch.arange(len(ids)), end], (states * before).sum(1) / before.sum(1)])


def apart_loss(text_model: nn.Module, chosen: list[Scene], step: int) -> Tensor:
    """How far two ways of saying one thing fall short of ``APART`` of the distance to another thing (hinge)."""
    scenes_said = [(scene, *said_otherwise(scene, random.Random(f"{step} {i}"))) for i, scene in enumerate(chosen)]
    # The same chance for all three, so that their captions differ in the one phrase only, if they mention it at all.
    texts = [[caption(scene, random.Random(f"{step} {i}")) for scene in three] for i, three in enumerate(scenes_said)]
    texts = [three for three in texts if len(set(three)) == 3]
    said, by_other_word, other = (
        _read(text_model, token_ids(list(column), trim=True)) for column in zip(*texts, strict=True)
    )
    between = (other - said).norm(dim=-1).detach()
    return (APART - (by_other_word - said).norm(dim=-1) / between).relu().mean()


def load_clip() -> CLIPModel:
    """The trained model: the running averages of both phases, blended."""
    model, later = new_clip(), new_clip()
    load_average("clip_pictures", model)
    load_average("clip", later)
    with torch.no_grad():
        torch._foreach_lerp_(list(model.parameters()), list(later.parameters()), BLEND)
    return model


def train_clip(deadline: float | None = None, steps: int = STEPS) -> tuple[CLIPModel, bool]:
    """Train text and vision side together. Returns the model and whether training is complete."""
    model = new_clip()
    drawn, pictures = scenes(1, SCENES)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(step)
        chosen = pick(step, BATCH, SCENES)
        ids = captions_for([drawn[i] for i in chosen], rng, trim=True)
        with mixed_precision():
            return model(input_ids=ids, pixel_values=normalised(pictures[chosen]), return_loss=True).loss

    def loss_with_words_apart(step: int) -> Tensor:
        later = PICTURE_STEPS + step
        with mixed_precision():
            apart = apart_loss(model.text_model, [drawn[i] for i in pick(later, BATCH, SCENES)[:TWINS]], later)
        return loss_at(later) + APART_WEIGHT * apart

    first = train("clip_pictures", model, loss_at, PICTURE_STEPS, peak_rate=1e-3, decay=0.995, deadline=deadline)
    if not first:
        return model.eval(), False
    complete = train("clip", model, loss_with_words_apart, steps, peak_rate=1e-3, decay=0.99, deadline=deadline)
    return load_clip(), complete
