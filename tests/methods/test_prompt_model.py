"""Prompts as token embeddings: the same encoding bit for bit, and gradients that reach the embeddings."""

from __future__ import annotations

import pytest
import torch

from erasure_core.errors import PromptTooLong
from erasure_core.hosts.diffusers import DiffusersModel

PROMPTS = ["", "a red ball", "a picture of the round thing that rolls"]
FAMILIES = ["sd1", "sd2", "sdxl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_of_a_prompts_tokens_encode_to_the_same_bits(
    pico_models: dict[str, DiffusersModel], family: str
) -> None:
    model = pico_models[family]
    rows, ends = model.token_rows(model.tokenize(PROMPTS))
    with torch.no_grad():
        written = model.encode(PROMPTS)
        embedded = model.encode_embeddings(
            [table[ids] for table, ids in zip(model.token_tables(), rows, strict=True)], ends
        )
    assert torch.equal(written.context, embedded.context)
    assert written.ends == embedded.ends == ends
    assert (written.pooled is None) == (family != "sdxl")
    if written.pooled is not None and embedded.pooled is not None:
        assert torch.equal(written.pooled, embedded.pooled)
    assert not any(encoder.get_input_embeddings()._forward_hooks for encoder in model.text_encoders)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_embeddings_of_every_text_encoder(
    pico_models: dict[str, DiffusersModel], family: str
) -> None:
    model = pico_models[family]
    rows, ends = model.token_rows(model.tokenize(["a red ball"]))
    with model.trainable():
        tables = model.token_tables()
        embeddings = [table[ids].clone().requires_grad_() for table, ids in zip(tables, rows, strict=True)]
        encoded = model.encode_embeddings(embeddings, ends)
        z, t = torch.ones(1, *model.latent_shape), torch.tensor([500])
        model.predict(z, t, encoded).pow(2).sum().backward()
    for embedding in embeddings:
        assert embedding.grad is not None and embedding.grad[:, : ends[0]].abs().sum() > 0
    assert all(table.grad is None for table in tables)


def test_tokens_and_text_go_back_and_forth(pico: DiffusersModel) -> None:
    ids = pico.tokenize(["a red ball", ""])
    assert pico.detokenize(ids[0]) == "a red ball" and ids[1] == []
    rows, ends = pico.token_rows(ids)
    assert rows[0].shape == (2, 77) and ends == (4, 1)


def test_too_many_tokens_are_refused(pico: DiffusersModel) -> None:
    with pytest.raises(PromptTooLong, match="76 tokens, but only 75"):
        pico.token_rows([[0] * 76])
