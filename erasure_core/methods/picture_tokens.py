"""Picture tokens as part of a training: given, or learned from given pictures or from the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..concept_pictures import own_latents
from ..image_prompt import ImageAdapter, ImageBranch, ImagePrompted, invert_pictures, refined
from ..model import Conditioning
from ..run_state import RunState

if TYPE_CHECKING:
    from ..trainer import Trainer


class PictureState(RunState):
    """Hangs an image branch on the model; the tokens [N, T, D] are in ``tensors["tokens"]``."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        adapter = trainer.pictures.adapter if trainer.pictures is not None else None
        self.branch = ImageBranch(adapter or ImageAdapter.of_model(trainer.model), trainer.model)

    @contextmanager
    def attached(self) -> Iterator[None]:
        plain = self.trainer.model
        self.trainer.model = ImagePrompted(plain, self.branch)
        try:
            with self.branch.attached(plain.layers()):
                yield
        finally:
            self.trainer.model = plain

    def after_backward(self) -> None:
        self.branch.tokens = None

    def learned_tokens(self, chance: torch.Generator, pictures: int, tokens: int, steps: int) -> Tensor:
        """The tokens that were given, or learned ones of given pictures or, for each concept, of ``pictures`` of the
        model's own."""
        trainer, given = self.trainer, self.trainer.pictures
        if given is not None and given.tokens is not None:
            return given.tokens.to(trainer.model.device)
        assert isinstance(trainer.model, ImagePrompted)
        with trainer.deltas.off():
            latents = given.latents if given is not None else None
            if latents is None:
                s = trainer.settings
                how = s.seed, s.trajectory_steps, s.guidance, trainer.progress, s.max_batch
                phrases = [words[0] for words in trainer.concept.each]
                latents = torch.cat([own_latents(trainer.model, phrase, pictures, *how) for phrase in phrases])
            batch = min(8, trainer.settings.batch)
            return invert_pictures(trainer.model, latents, chance, tokens, steps, batch, progress=trainer.progress)

    def shown(self, prompts: Sequence[str], pictures: Sequence[int], count: int) -> list[int]:
        """The picture of each prompt, -1 where it says more than the concept: what a picture shows of colour and place
        speaks against the rest of such a prompt, and both would be unlearned together. Of several concepts each prompt
        gets a picture of its own one, where the ``count`` pictures are the model's own."""
        trainer, each = self.trainer, self.trainer.concept.each
        own = count // len(each) if trainer.pictures is None else 0
        chosen = []
        for prompt, picture in zip(prompts, pictures, strict=True):
            saying = trainer.sayings[prompt]
            if saying.without:
                chosen.append(-1)
            elif picture < 0 or not own:
                chosen.append(picture)
            else:
                word = trainer.concept.words[saying.word]
                group = next(i for i, words in enumerate(each) if word in words)
                chosen.append(group * own + picture % own)
        return chosen


def with_pictures(text: Conditioning, tokens: Tensor, pictures: Sequence[int], refine: bool) -> Conditioning:
    """Encoded prompts, each with a picture.

    Args:
        text: the prompts.
        tokens: of all pictures, [N, T, D].
        pictures: for each prompt the number of its picture; -1 is none.
        refine: rebuild the tokens from the prompt's own, see ``image_prompt.refined``.
    """
    rows = []
    for row, picture in enumerate(pictures):
        shown = tokens[picture] if picture >= 0 else torch.zeros_like(tokens[0])
        if picture >= 0 and refine:
            shown = refined(shown, text.context[row, 1 : text.ends[row] + 1])
        rows.append(shown)
    return Conditioning(text.context, text.ends, text.pooled, torch.stack(rows))
