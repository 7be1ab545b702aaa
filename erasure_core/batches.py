"""Many latents through the network, few at a time: as many as are asked for, or as memory suffices for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import Cancelled, DeviceOutOfMemory, telling_memory
from .memory import predicted_at_once
from .model import Conditioning, LoadedModel
from .progress import Progress, Silent


@dataclass
class Batches:
    """How many latents go into one network call.

    Args:
        most: at most so many, and fewer where a card says that it has no room for them; halved whenever memory does
            not suffice for those that were tried, and kept so from then on.
    """

    most: int

    def predict(
        self,
        model: LoadedModel,
        latents: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        progress: Progress,
        told: Callable[[int], None] = lambda done: None,
        prompts: Sequence[int] | None = None,
    ) -> Tensor:
        """``model.predict`` for any number of latents, [B, C, H, W]; how many are done is ``told`` after each call.

        Where many latents share a prompt, ``prompts`` has for each latent its place in the conditioning: a prompt of
        SDXL takes ten times the memory of a latent.

        Raises:
            Cancelled: the user stopped; asked before each call.
            DeviceOutOfMemory: memory does not suffice for one latent.
        """
        done: list[Tensor] = []
        start, room = 0, predicted_at_once(model.device, model.dtype, latents.shape[-2:].numel()) or self.most
        while start < len(latents):
            if progress.cancelled():
                raise Cancelled("Stopped while the model was predicting.")
            stop = min(start + self.most, start + room, len(latents))
            rows = range(start, stop) if prompts is None else prompts[start:stop]
            try:
                with telling_memory():
                    done.append(model.predict(latents[start:stop], t[start:stop], conditioning[rows]))
            except DeviceOutOfMemory:
                tried = stop - start
                if tried == 1:
                    raise
                self.most = tried // 2
                continue
            start = stop
            told(start)
        return torch.cat(done)

    def predictor(self, model: LoadedModel) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
        """``predict`` of one model as the steps of a sampler call it, which ask for Cancelled between them."""

        def predict(latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            return self.predict(model, latents, t, conditioning, Silent())

        return predict
