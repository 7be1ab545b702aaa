"""Text encoders as AUTOMATIC1111 and its descendants drive them, one prompt chunk of 77 tokens at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .families import TEXT_ENCODERS
from .token_rows import LENGTH, Marks, framed

_OPEN_CLIP = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


class TextSide:
    """One text encoder of the loaded model.

    Args:
        engine: the host's object with ``tokenize`` and ``encode_with_transformers``. The latter applies the user's
            clip-skip setting and the final norm, so what is trained on is what the host paints with.
        name: ``text_encoder`` or ``text_encoder_2``.
    """

    def __init__(self, engine: Any, name: str) -> None:
        self.engine, self.name = engine, name
        wrapped = getattr(engine, "wrapped", None)
        network = getattr(wrapped, "transformer", None) or getattr(wrapped, "model", None)
        self.network: nn.Module = network if network is not None else engine.text_encoder.transformer
        self.is_open_clip = hasattr(self.network, "token_embedding")

    @property
    def embedding(self) -> nn.Module:
        """What turns ids into vectors; hosts wrap it to slip in textual inversions."""
        network: Any = self.network
        found = network.token_embedding if self.is_open_clip else network.text_model.embeddings.token_embedding
        assert isinstance(found, nn.Module)
        return found

    @property
    def table(self) -> Tensor:
        """Input embeddings [V, D]."""
        layer: Any = self.embedding
        weight = getattr(layer, "wrapped", layer).weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        return [[int(token) for token in row] for row in self.engine.tokenize(list(prompts))]

    def detokenize(self, ids: Sequence[int]) -> str:
        tokenizer = getattr(self.engine, "tokenizer", None)
        if tokenizer is None:
            import open_clip  # type: ignore[import-not-found]

            tokenizer = open_clip.tokenizer._tokenizer
        return str(tokenizer.decode(list(ids))).strip()

    def rows(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Whole rows, int64 [B, 77], with begin, end and padding.

        Raises:
            PromptTooLong: a row would be cut.
        """
        engine = self.engine
        return framed(ids, Marks(engine.id_start, engine.id_end, int(engine.id_pad)), self.detokenize)

    def placed(self, ends: Sequence[int], length: int = LENGTH) -> Tensor:
        """Rows [B, length] that only say where the end token is, for encoding from so many embeddings.

        Open CLIP adds all its places and its mask to every row, so there the rows have 77 whatever is asked for.
        """
        ids = torch.zeros(len(ends), LENGTH if self.is_open_clip else length, dtype=torch.long)
        ids[torch.arange(len(ends)), list(ends)] = int(self.engine.id_end)
        return ids

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Context [B, 77, D] and pooled features [B, P], if this encoder has them."""
        context: Tensor = self.engine.encode_with_transformers(rows)
        pooled = getattr(context, "pooled", None)
        return context, pooled if isinstance(pooled, Tensor) else None

    @contextmanager
    def reading(self, vectors: Tensor) -> Iterator[None]:
        """Inside, the encoder reads these embeddings [B, at most 77, D], whatever ids it is given.

        Where its rows are longer, what they hold behind the embeddings stays: text is read from left to right.
        """

        def replace(layer: nn.Module, inputs: Any, looked_up: Tensor) -> Tensor:
            return torch.cat([vectors.to(looked_up), looked_up[:, vectors.shape[1] :]], dim=1)

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Canonical names of the linear layers whose forward the host calls."""
        unread = self._unread()
        for path, layer in self.network.named_modules():
            # open_clip's attention reads the weight of its output layer without ever calling that layer. Where A1111's
            # classes drive the network, its last projection is beside it; reForge has a layer there that nothing reads.
            is_called = not (self.is_open_clip and path.endswith("attn.out_proj"))
            is_called &= path != "text_projection" or getattr(self.engine, "wrapped", None) is None
            if is_layer(layer) and is_called:
                name = self.canonical(path)
                if name is not None and not path.startswith(unread):
                    yield name, layer

    def parameters(self) -> dict[str, Tensor]:
        """All weights by canonical names. Hosts wrap what turns ids into vectors."""
        named = ((key.replace(".wrapped.", ".").rpartition("."), p) for key, p in self.network.named_parameters())
        found = {(self.canonical(path), leaf): parameter for (path, _, leaf), parameter in named}
        return {f"{module}.{leaf}": parameter for (module, leaf), parameter in found.items() if module is not None}

    def _unread(self) -> tuple[str, ...]:
        """Where the blocks stand that SD2's text encoder stops before. SDXL's, which pools the last one's, does not."""
        wrapped = getattr(self.engine, "wrapped", None)
        if not self.is_open_clip or hasattr(wrapped, "return_pooled"):
            return ()
        network: Any = self.network
        count = len(network.transformer.resblocks)
        return tuple(f"transformer.resblocks.{count - 1 - i}." for i in range(int(getattr(wrapped, "layer_idx", 0))))

    def canonical(self, path: str) -> str | None:
        """The canonical name of a module of this encoder; ``None`` for one that other hosts do not have."""
        if self.is_open_clip:
            found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(attn\.out_proj|mlp\.c_fc|mlp\.c_proj)", path)
            return found and f"{self.name}.text_model.encoder.layers.{found[1]}.{_OPEN_CLIP[found[2]]}"
        if path.startswith(("text_model.", "text_projection")):
            return f"{self.name}.{path}"
        return f"{self.name}.text_model.{path}"


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution; Forge's linear layers are no ``nn.Linear``."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return True
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and hasattr(module, "in_features")


def text_sides(sd_model: Any) -> list[TextSide]:
    """The text encoders of the loaded model, in the order in which their outputs are joined.

    Raises:
        ModelError: a text side that is not known.
    """
    engines = [getattr(sd_model, f"text_processing_engine{end}", None) for end in ("", "_l", "_g")]
    engines = [engine for engine in engines if engine is not None]
    if not engines:
        conditioner = getattr(sd_model, "conditioner", None)
        found = list(conditioner.embedders) if conditioner is not None else [sd_model.cond_stage_model]
        engines = [engine for engine in found if hasattr(engine, "encode_with_transformers")]
    if not 1 <= len(engines) <= 2:
        raise ModelError("The text encoders of this model are of an unknown kind; use SD1.x, SD2.x or SDXL.")
    return [TextSide(engine, name) for engine, name in zip(engines, TEXT_ENCODERS, strict=False)]
