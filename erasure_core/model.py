"""All that the core may know of a loaded model. Adapters in ``erasure_core/hosts`` implement it, one for each host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from .errors import InvalidConcept
from .schedule import NoiseSchedule

PATCH = 8
"""Pixels of a picture along one side of a latent pixel."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts.

    Args:
        context: what cross-attention reads, [B, L, D].
        ends: for each prompt the index of its end token in ``context``, one behind the last written token.
        pooled: pooled text features [B, P] of models that use them (SDXL), else ``None``.
        image: picture tokens [B, T, D] for an image branch (``image_prompt``), zeros where a prompt has no picture;
            ``None`` where none has. A loaded model by itself does not read them.
    """

    context: Tensor
    ends: tuple[int, ...]
    pooled: Tensor | None = None
    image: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, index: Sequence[int]) -> Conditioning:
        """The prompts at ``index``, in that order, with repetition allowed."""
        rows = list(index)
        pooled, image = (None if given is None else given[rows] for given in (self.pooled, self.image))
        return Conditioning(self.context[rows], tuple(self.ends[i] for i in rows), pooled, image)

    def detach(self) -> Conditioning:
        pooled, image = (None if given is None else given.detach() for given in (self.pooled, self.image))
        return Conditioning(self.context.detach(), self.ends, pooled, image)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch. All parts come from the same model, so either all are pooled or none."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        ends = tuple(end for part in parts for end in part.ends)
        context = torch.cat([part.context for part in parts])
        return Conditioning(context, ends, torch.cat(pooled) if pooled else None, _images(parts))


def _images(parts: Sequence[Conditioning]) -> Tensor | None:
    """The picture tokens of all parts, with zeros for those that have none."""
    given = [part.image for part in parts if part.image is not None]
    if not given:
        return None
    none = given[0].new_zeros(1, *given[0].shape[1:])
    return torch.cat([none.expand(len(part), -1, -1) if part.image is None else part.image for part in parts])


def gradient_scale(dtype: torch.dtype) -> float:
    """What to multiply a loss by before its backward pass: gradients of a float16 network underflow otherwise. For
    optimisers that do not see the size of gradients, such as Adam."""
    return 1024.0 if dtype == torch.float16 else 1.0


class LoadedModel(Protocol):
    """A text-to-image latent diffusion model as its host has loaded it."""

    family: str
    """``sd1``, ``sd2``, ``sdxl``, …: decides the names in files."""
    device: torch.device
    dtype: torch.dtype
    """The type the model computes in."""
    latent_shape: tuple[int, int, int]
    """Channels, height and width of the latents the model was made for."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Signal and noise at each timestep, and what the model predicts."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts; inside ``trainable``, gradients flow into deltas on the text encoder.

        Raises:
            Cancelled: the user stopped, where a host interrupts in the middle of a call.
            PromptTooLong: a prompt has more tokens than the text encoder reads.
        """
        ...

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The model's raw prediction (eps or v), float32, for latents [B, C, H, W].

        ``t`` [B] counts places in ``schedule``; an adapter turns them into what its host wants (timesteps, sigmas).

        Raises:
            Cancelled: as of ``encode``.
        """
        ...

    def layers(self) -> dict[str, nn.Module]:
        """Every linear and convolution layer by canonical name: ``unet.`` or ``text_encoder.`` (SDXL's second one
        ``text_encoder_2.``) and the diffusers path, text encoders with their ``text_model.`` prefix.

        Only layers whose forward the host really calls: what hangs on another would silently do nothing.
        """
        ...

    def base_weight(self, name: str) -> Tensor:
        """A layer's weight without anything that the host has merged into it, in the type it is stored in."""
        ...

    def weight(self, name: str) -> Tensor:
        """A layer's weight as the model computes with it now: the base weight and what the host merges into it, such
        as a LoRA that the user has loaded."""
        ...

    def trainable(self, checkpointing: bool = False) -> AbstractContextManager[None]:
        """While inside, the weights are frozen and gradients can flow through the model, with ``checkpointing``
        recomputing activations to save memory; on leaving, the host's model is as it was. New tensors are normal ones
        inside, also where the host works in inference mode."""
        ...


class PictureModel(LoadedModel, Protocol):
    """A loaded model that can also show pictures."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, uint8 [B, 3, H, W] on the CPU, of latents [B, C, h, w] on whatever device."""
        ...


class PictureReader(PictureModel, Protocol):
    """A loaded model that can also read pictures."""

    def latents_of(self, pictures: Tensor) -> Tensor:
        """Clean latents [B, C, h, w] of pictures, uint8 [B, 3, H, W]; ``decode`` goes the other way."""
        ...


class PromptModel(LoadedModel, Protocol):
    """A loaded model whose prompts can be taken apart into tokens and their embeddings: for searching and learning
    prompts that nobody wrote."""

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids of prompts, without begin, end and padding."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for."""
        ...

    def token_rows(self, rows: Sequence[Sequence[int]]) -> tuple[list[Tensor], tuple[int, ...]]:
        """Whole id rows, int64 [B, L] for each text encoder, with begin, end and that encoder's padding; and the place
        of each row's end token.

        Raises:
            PromptTooLong: a row has more tokens than the text encoder reads.
        """
        ...

    def token_tables(self) -> list[Tensor]:
        """The input embeddings [V, D] of each text encoder, not to be written to."""
        ...

    def encode_embeddings(self, embeddings: Sequence[Tensor], ends: Sequence[int]) -> Conditioning:
        """As ``encode``, from token embeddings [B, L, D], one tensor for each text encoder, and the place of each
        prompt's end token. ``table[rows]`` of ``token_tables`` and ``token_rows`` gives what ``encode`` gives, bit for
        bit; inside ``trainable``, gradients flow into the embeddings."""
        ...


def as_prompt_model(model: LoadedModel) -> PromptModel | None:
    """A loaded model as one whose prompts can be taken apart; ``None`` where its host does not let them be."""
    asked = ("tokenize", "detokenize", "token_rows", "token_tables", "encode_embeddings")
    return cast("PromptModel", model) if all(hasattr(model, name) for name in asked) else None


ENCODED_AT_ONCE = 256
"""Prompts in one call of the text encoder: of thousands of kept ones, all at once, SDXL's would need gigabytes."""


def encoded_pieces(model: LoadedModel, prompts: Sequence[str]) -> Iterator[Conditioning]:
    """``model.encode`` for any number of prompts, some at a time; raises as that."""
    return (model.encode(prompts[i : i + ENCODED_AT_ONCE]) for i in range(0, len(prompts), ENCODED_AT_ONCE))


def encode_in_pieces(model: LoadedModel, prompts: Sequence[str]) -> Conditioning:
    """All of ``encoded_pieces``."""
    return Conditioning.cat(list(encoded_pieces(model, prompts)))


def each_once(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The distinct ones of prompts, and for each prompt its place among them: texts are encoded once each."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]


def encode_each(model: LoadedModel, prompts: Sequence[str]) -> Conditioning:
    """``encode_in_pieces``, with each distinct prompt encoded once."""
    distinct, places = each_once(prompts)
    return encode_in_pieces(model, distinct)[places]


def reading_of(model: LoadedModel) -> str:
    """What decides, beside the weights, how a model reads prompts: a host's "clip skip", which its adapter tells as
    ``reading``; empty for models that have no such setting."""
    return str(getattr(model, "reading", ""))


def has_room(model: LoadedModel, prompt: str) -> bool:
    """Whether a model reads a prompt whole. Models that cannot be asked are taken to."""
    return bool(fitting(model, [prompt]))


def fitting(model: LoadedModel, prompts: Iterable[str]) -> list[str]:
    """Those prompts that a model reads whole."""
    given, asked = list(prompts), as_prompt_model(model)
    known = given if asked is None else tokens_with_room(asked, given)
    return [prompt for prompt in given if prompt in known]


def tokens_with_room(model: PromptModel, prompts: Iterable[str]) -> dict[str, list[int]]:
    """The token ids of those prompts that a model reads whole; all are looked up together: a tokenizer takes its
    time."""
    distinct = list(dict.fromkeys(prompts))
    if not distinct:  # which tokenizers cannot read
        return {}
    room = int(model.token_rows([[]])[0][0].shape[1]) - 2
    rows = zip(distinct, model.tokenize(distinct), strict=True)
    return {prompt: row for prompt, row in rows if len(row) <= room}


def whole_word(model: PromptModel, token: int) -> str | None:
    """The word that a token stands for; ``None`` for what is typed and read as something else, such as a part of a
    word, and for what has less than three letters or other signs among them."""
    word = model.detokenize([token])
    return word if len(word) > 2 and word.isalpha() and model.tokenize([word])[0] == [token] else None


def check_readable(model: LoadedModel, words: Sequence[str]) -> None:
    """Small vocabularies have no token for some words and put the end token in their place.

    Args:
        model: the loaded model; one that cannot be asked is taken to read all.
        words: words and phrases of a concept, or what takes its place.

    Raises:
        InvalidConcept: a word, or one of a phrase, is nothing to the model: it would be another concept, or none.
    """
    asked = as_prompt_model(model)
    if asked is None:
        return
    framed, (end,) = asked.token_rows([[]])
    nothing = {int(framed[0][0, 0]), int(framed[0][0, end])}
    for word, row in zip(words, asked.tokenize(words), strict=True):
        if not row or not nothing.isdisjoint(row):
            unread = [part for part in word.split() if not nothing.isdisjoint(asked.tokenize([part])[0])]
            what = repr(unread[0]) if unread else repr(word)
            raise InvalidConcept(f"This model's vocabulary has no token for {what}; say it in other words.")
