"""The hosts' text encoders of SD1.x, SD2.x and SDXL around those of a pico model.

A1111 keeps open_clip's layout for SD2's encoder and SDXL's second one: query, key and value in one weight, the last
projection as a bare matrix, ids without an object that tokenizes. The Forge family keeps transformers' layout for all.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.ldm_keys import to_open_clip


class Engine:
    """The host's text object: what ``FrozenCLIPEmbedderWithCustomWords`` and Forge's engine have in common.

    Args:
        hidden: which hidden state it reads; ``None`` for the last one, which has gone through the final norm.
        pools: whether it gives pooled features too, as SDXL's second one does.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any, hidden: int | None = None, pools: bool = False) -> None:
        self.wrapped: Any = types.SimpleNamespace(transformer=_prefixed(encoder), tokenizer=tokenizer)
        self.encoder, self.tokenizer, self.hidden, self.pools = encoder, tokenizer, hidden, pools
        self.id_start, self.id_end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.id_pad = tokenizer.pad_token_id

    @property
    def network(self) -> nn.Module:
        return self.wrapped.transformer

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=False, add_special_tokens=False)["input_ids"]

    def encode_with_transformers(self, tokens: Tensor) -> Tensor:
        if self.hidden is None:
            return self.encoder(tokens).last_hidden_state
        out = self.encoder(tokens, output_hidden_states=True)
        found: Any = out.hidden_states[self.hidden]
        if self.pools:
            found.pooled = out.text_embeds
        return found


def _prefixed(encoder: nn.Module) -> nn.Module:
    """transformers 5 dropped ``text_model.``; A1111's transformers have it."""
    if hasattr(encoder, "text_model"):
        return encoder
    outer = nn.Module()
    outer.text_model = encoder
    return outer


class EmbeddingsWithFixes(nn.Module):
    """What A1111 puts around an embedding, to slip in textual inversions."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, ids: Tensor) -> Tensor:
        return self.wrapped(ids)


class Block(nn.Module):
    """open_clip's ``ResidualAttentionBlock``."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, inner), "c_proj": nn.Linear(inner, width)})

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        read = self.ln_1(x)
        x = x + self.attn(read, read, read, need_weights=False, attn_mask=attn_mask)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClip(nn.Module):
    """open_clip's text side with a transformers encoder's weights.

    Args:
        unread: blocks after those of the encoder: SD2's last one is in every checkpoint but never runs.
    """

    def __init__(self, encoder: Any, unread: int) -> None:
        super().__init__()
        config = encoder.config
        width, depth = config.hidden_size, config.num_hidden_layers + unread
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(77, width))
        self.transformer = nn.Module()
        heads, inner = config.num_attention_heads, config.intermediate_size
        self.transformer.resblocks = nn.ModuleList(Block(width, heads, inner) for _ in range(depth))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, config.projection_dim))
        self.register_buffer("attn_mask", torch.full((77, 77), -torch.inf).triu(1), persistent=False)
        state = encoder.state_dict()
        bare = not any(name.startswith("text_model.") for name in state)
        state = {f"text_model.{name}" if bare else name: tensor for name, tensor in state.items()}
        missing, unknown = self.load_state_dict(to_open_clip(state), strict=False)
        assert not unknown and all(".resblocks." in name or name == "text_projection" for name in missing)
        self.token_embedding = EmbeddingsWithFixes(self.token_embedding)

    def hidden(self, ids: Tensor, leave_out: int) -> tuple[Tensor, Tensor]:
        """What comes out of all blocks but the last ones, and out of the last."""
        x = (self.token_embedding(ids) + self.positional_embedding).permute(1, 0, 2)
        states = [x]
        for block in self.transformer.resblocks:
            states.append(block(states[-1], attn_mask=self.attn_mask))
        return states[-1 - leave_out].permute(1, 0, 2), states[-1].permute(1, 0, 2)


class OpenClipEngine(nn.Module):
    """``FrozenOpenCLIPEmbedderWithCustomWords`` (SD2), and ``FrozenOpenCLIPEmbedder2WithCustomWords`` (SDXL)."""

    id_pad = 0

    def __init__(self, encoder: nn.Module, tokenizer: Any, pools: bool) -> None:
        super().__init__()
        self.wrapped = nn.Module()
        self.wrapped.model = OpenClip(encoder, unread=0 if pools else 1)
        self.wrapped.layer_idx = 1
        if pools:
            self.wrapped.return_pooled = True
        self.pools = pools
        self.id_start, self.id_end = tokenizer.bos_token_id, tokenizer.eos_token_id
        sys.modules["open_clip"] = types.ModuleType("open_clip")
        sys.modules["open_clip"].tokenizer = types.SimpleNamespace(_tokenizer=_BareTokenizer(tokenizer))  # type: ignore[attr-defined]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        found: Any = sys.modules["open_clip"]
        return [found.tokenizer._tokenizer.encode(text) for text in texts]

    def encode_with_transformers(self, tokens: Tensor) -> Tensor:
        network: Any = self.wrapped.model
        found, last = network.hidden(tokens, self.wrapped.layer_idx)
        if not self.pools:
            return network.ln_final(found)
        ends = network.ln_final(last)[torch.arange(len(tokens)), tokens.argmax(dim=-1)]
        found.pooled = ends @ network.text_projection
        return found


class _BareTokenizer:
    """open_clip's ``SimpleTokenizer``."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


def ldm_engines(source: DiffusersModel) -> list[Any]:
    """A1111's text objects, in the order in which their outputs are joined."""
    encoders, tokenizers = source.text_encoders, source.tokenizers
    if source.family == "sd1":
        return [Engine(encoders[0], tokenizers[0])]
    if source.family == "sd2":
        return [OpenClipEngine(encoders[0], tokenizers[0], pools=False)]
    return [Engine(encoders[0], tokenizers[0], hidden=-2), OpenClipEngine(encoders[1], tokenizers[1], pools=True)]


class ForgeEngine(Engine):
    """``ClassicTextProcessingEngine``, by whose name for it the network is found elsewhere."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.text_encoder = types.SimpleNamespace(transformer=self.wrapped.transformer)
        del self.wrapped

    @property
    def network(self) -> nn.Module:
        return self.text_encoder.transformer


def forge_engines(source: DiffusersModel, is_old: bool) -> list[Any]:
    """The Forge family's text objects; the old hosts keep A1111's classes around the same networks."""
    kind, sides = Engine if is_old else ForgeEngine, list(zip(source.text_encoders, source.tokenizers, strict=True))
    if source.family != "sdxl":
        return [kind(encoder, tokenizer) for encoder, tokenizer in sides]
    return [kind(*sides[0], hidden=-2), kind(*sides[1], hidden=-2, pools=True)]


def learned_conditioning(engines: list[Any], prompts: list[str], side: int) -> Any:
    """What the hosts read prompts as: a tensor, or for SDXL a dictionary with the pooled text and the picture's size.

    Written without our own code for it: whole rows by transformers' tokenizer, sizes by diffusers' embedding.
    """
    found = [_encoded(engine, prompts) for engine in engines]
    if len(found) == 1:
        return found[0]
    from diffusers.models.embeddings import get_timestep_embedding

    sizes = torch.tensor([side, side, 0, 0, side, side])
    vector = get_timestep_embedding(sizes, 256, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()
    pooled = found[1].pooled
    return {
        "crossattn": torch.cat(found, dim=2),
        "vector": torch.cat([pooled, vector.expand(len(prompts), -1)], dim=1),
    }


def _encoded(engine: Any, prompts: list[str]) -> Any:
    rows = torch.full((len(prompts), 77), engine.id_pad)
    for place, ids in enumerate(engine.tokenize(prompts)):
        rows[place, : len(ids) + 2] = torch.tensor([engine.id_start, *ids, engine.id_end])
    return engine.encode_with_transformers(rows)
