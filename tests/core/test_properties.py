"""What holds for every model and every change: names map one to one, strengths add up, what is merged comes off."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from erasure_core.algebra import dense, low_rank, merged
from erasure_core.delta import Delta, DeltaSet, DenseDelta, LowRankDelta
from erasure_core.hosts.ldm_modules import canonical_unet_names
from erasure_core.naming import file_names, ldm_paths

STRENGTHS = st.floats(-3, 3)


def _resnet(path: str, shortcut: bool) -> list[str]:
    return [f"{path}.{part}" for part in ("conv1", "time_emb_proj", "conv2", *(["conv_shortcut"] if shortcut else []))]


def _attention(path: str, depth: int) -> list[str]:
    parts = ["proj_in", "proj_out"]
    for k in range(depth):
        for kind in ("attn1", "attn2"):
            parts += [f"transformer_blocks.{k}.{kind}.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
        parts += [f"transformer_blocks.{k}.ff.net.0.proj", f"transformer_blocks.{k}.ff.net.2"]
    return [f"{path}.{part}" for part in parts]


@st.composite
def unet_layers(draw: st.DrawFn) -> list[str]:
    """The layers of a UNet of any number of levels, blocks a level and transformer depths, by diffusers' names."""
    depths, per_level = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5)), draw(st.integers(1, 4))
    names = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
    if draw(st.booleans()):
        names += ["add_embedding.linear_1", "add_embedding.linear_2"]
    for way, levels, blocks in (("down", depths, per_level), ("up", depths[::-1], per_level + 1)):
        for i, depth in enumerate(levels):
            for j in range(blocks):
                names += _resnet(f"{way}_blocks.{i}.resnets.{j}", draw(st.booleans()))
                names += _attention(f"{way}_blocks.{i}.attentions.{j}", depth) if depth else []
            if i < len(levels) - 1:
                names.append(f"{way}_blocks.{i}.{way}samplers.0.conv")
    return [*names, *_resnet("mid_block.resnets.0", False), *_attention("mid_block.attentions.0", 1)]


@settings(max_examples=60, deadline=None)
@given(names=unet_layers())
def test_names_map_one_to_one_and_back(names: list[str]) -> None:
    paths = ldm_paths(names)
    assert set(paths) == set(names) and len(set(paths.values())) == len(names)
    assert canonical_unet_names(paths.values()) == {path: name for name, path in paths.items()}
    layers = [f"unet.{name}" for name in names]
    for family in ("sd1", "sd2", "sdxl"):
        for is_dense in (False, True):
            files = file_names(layers, family, is_dense)
            assert set(files) == set(layers) and len(set(files.values())) == len(layers)


@st.composite
def changed_layers(draw: st.DrawFn) -> tuple[nn.Linear | nn.Conv2d, Delta, torch.Tensor]:
    """A layer, a change of it, and an input."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    inputs, outputs, rank = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    layer: nn.Linear | nn.Conv2d
    if draw(st.booleans()):
        layer, x = nn.Linear(inputs, outputs), torch.randn(3, inputs, generator=generator)
    else:
        size, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2)
        x = torch.randn(2, inputs, 5, 5, generator=generator)
    shape = layer.weight.shape
    if draw(st.booleans()):
        return layer, DenseDelta(torch.randn(shape, generator=generator)), x
    up = torch.randn(outputs, rank, *[1] * (len(shape) - 2), generator=generator)
    return layer, LowRankDelta(torch.randn(rank, *shape[1:], generator=generator), up), x


@settings(max_examples=100, deadline=None)
@given(changed=changed_layers(), first=STRENGTHS, second=STRENGTHS)
@torch.no_grad()
def test_outputs_are_linear_in_the_strength(
    changed: tuple[nn.Linear | nn.Conv2d, Delta, torch.Tensor], first: float, second: float
) -> None:
    layer, delta, x = changed
    plain = layer(x)
    with DeltaSet({"layer": delta}, 1.0).attached({"layer": layer}):
        whole = layer(x) - plain
    for strength in (first, second, first + second):
        with DeltaSet({"layer": delta}, strength).attached({"layer": layer}):
            torch.testing.assert_close(layer(x), plain + strength * whole, atol=1e-3, rtol=1e-3)
    one, two = DeltaSet({"layer": delta}, first), DeltaSet({"layer": delta}, second)
    with one.attached({"layer": layer}), two.attached({"layer": layer}):
        torch.testing.assert_close(layer(x), plain + (first + second) * whole, atol=1e-3, rtol=1e-3)
    assert torch.equal(layer(x), plain), "detached, nothing is left of it"


@settings(max_examples=100, deadline=None)
@given(changed=changed_layers(), strength=STRENGTHS)
@torch.no_grad()
def test_what_is_merged_into_a_weight_comes_off_again(
    changed: tuple[nn.Linear | nn.Conv2d, Delta, torch.Tensor], strength: float
) -> None:
    layer, delta, x = changed
    original, plain = layer.weight.clone(), layer(x)
    deltas = DeltaSet({"layer": delta})
    with DeltaSet({"layer": delta}, strength).attached({"layer": layer}):
        hooked = layer(x)
    layer.weight += merged([(deltas, strength)])["layer"].change()
    torch.testing.assert_close(layer(x), hooked, atol=1e-3, rtol=1e-3)
    layer.weight += merged([(deltas, -strength)])["layer"].change()
    torch.testing.assert_close(layer.weight, original, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x), plain, atol=1e-3, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(changed=changed_layers())
@torch.no_grad()
def test_a_change_survives_both_forms(changed: tuple[nn.Linear | nn.Conv2d, Delta, torch.Tensor]) -> None:
    _, delta, _ = changed
    deltas = DeltaSet({"layer": delta})
    back, error = low_rank(dense(deltas))
    assert error < 1e-5 and isinstance(back["layer"], LowRankDelta)
    torch.testing.assert_close(back["layer"].change(), delta.change(), atol=1e-4, rtol=1e-3)
    assert abs(back["layer"].norm() - delta.norm()) <= 1e-4 * max(1.0, delta.norm())
