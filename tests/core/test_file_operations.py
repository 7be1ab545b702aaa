"""Merging, scaling, converting and baking: what the new file does equals what the old ones did."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import write_checkpoint, write_pico
from random_changes import as_erasure, predict, random_deltas
from safetensors.torch import load_file, save_file

from erasure_core import Concept, DeltaSet, erase, read_erasure, write_erasure
from erasure_core.algebra import dense, low_rank, merged
from erasure_core.cli import bake
from erasure_core.cli.main import main
from erasure_core.combining import all_words
from erasure_core.delta import DenseDelta, LowRankDelta
from erasure_core.foreign import read_foreign
from erasure_core.hosts.diffusers import DiffusersModel


@pytest.mark.parametrize("forms", [(False, False), (True, True), (False, True)])
def test_merged_equals_both_applied(pico: DiffusersModel, forms: tuple[bool, bool]) -> None:
    a = random_deltas(pico, "cross-attention", 0, forms[0])
    b = random_deltas(pico, "full+text-encoder", 1, forms[1])
    one = merged([(a, 0.7), (b, -0.4)])
    torch.testing.assert_close(predict(pico, (one, 1.0)), predict(pico, (a, 0.7), (b, -0.4)), atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.floats(-2, 2), second=st.floats(-2, 2), seed=st.integers(0, 1000))
def test_merging_is_linear_and_has_an_inverse(first: float, second: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = LowRankDelta(torch.randn(2, 5, generator=generator), torch.randn(4, 2, generator=generator))
    deltas = DeltaSet({"layer": delta})
    both = merged([(deltas, first), (deltas, second)])["layer"].change()
    torch.testing.assert_close(both, (first + second) * delta.change(), atol=1e-4, rtol=1e-4)
    nothing = merged([(deltas, first), (deltas, -first)])["layer"].change()
    torch.testing.assert_close(nothing, torch.zeros(4, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(12, 9), (8, 6, 3, 3)])
def test_dense_and_low_rank_are_inverse_where_the_rank_suffices(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = LowRankDelta.zero(torch.Size(shape), 3, generator)
    delta.up.data.normal_(generator=generator)
    back, error = low_rank(dense(DeltaSet({"layer": delta})))
    assert error < 1e-5 and back["layer"].rank == 3  # type: ignore[attr-defined]
    torch.testing.assert_close(back["layer"].change(), delta.change(), atol=1e-5, rtol=1e-4)


def test_the_stated_error_is_the_error() -> None:
    change = DenseDelta(torch.randn(20, 30, generator=torch.Generator().manual_seed(0)))
    found, error = low_rank(DeltaSet({"layer": change}), rank=4)
    missed = (found["layer"].change() - change.change()).norm() / change.change().norm()
    assert error == pytest.approx(float(missed), rel=1e-4) and 0.3 < error < 1


@pytest.fixture
def files(pico: DiffusersModel, tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "ball.safetensors", tmp_path / "cat.safetensors"
    for path, word in zip(paths, ("ball", "cat"), strict=True):
        write_erasure(path, erase(pico, Concept((word,), "box"), "closed_form")[0], pico)
    return paths


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main([*map(str, arguments), "--json"]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def test_merge_command(
    pico: DiffusersModel,
    pico_folders: dict[str, Path],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "both.safetensors"
    run_json(capsys, "merge", files[0], f"{files[1]}:0.5", "--model", pico_folders["sd1"], "--out", out)
    stored = read_erasure(out)
    assert stored.manifest is not None and stored.manifest.words == ("ball", "cat")
    assert main(["inspect", str(out)]) == 0
    assert f"parts      {files[0].name} at 1.0, {files[1].name} at 0.5" in capsys.readouterr().out
    a, b = (read_erasure(path).bind(pico) for path in files)
    expected = predict(pico, (a, 1.0), (b, 0.5))
    torch.testing.assert_close(predict(pico, (stored.bind(pico), 1.0)), expected, atol=2e-3, rtol=1e-2)


def test_a_merge_of_one_file_scales_it(
    pico: DiffusersModel,
    pico_folders: dict[str, Path],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "half.safetensors"
    run_json(capsys, "merge", f"{files[0]}:0.5", "--model", pico_folders["sd1"], "--out", out)
    whole, half = (read_erasure(path).bind(pico) for path in (files[0], out))
    assert set(whole) == set(half) and len(half)
    for name in whole:
        torch.testing.assert_close(half[name].change(), 0.5 * whole[name].change(), atol=1e-6, rtol=2e-3)
    torch.testing.assert_close(predict(pico, (half, 1.0)), predict(pico, (whole, 0.5)), atol=2e-3, rtol=1e-2)


def test_a_merge_keeps_what_takes_each_words_place() -> None:
    def erasing(words: str, instead: str | None, *own: tuple[str, str]) -> Any:
        said, found = tuple(words.split()), ("orb", "dog")
        return SimpleNamespace(words=said, alternative=instead, keep=(), instead=own, groups=(), found=found)

    merged_one = all_words([erasing("ball orb", "cube", ("orb", "egg")), erasing("cat", "ball"), erasing("dog", None)])
    assert merged_one.named == ("ball", "cat"), "what the parts' methods added nobody named"
    assert merged_one.words == ("ball", "orb", "cat", "dog") and merged_one.alternative is None
    assert dict(merged_one.instead) == {"ball": "cube", "orb": "egg"}, "the cat's ball is erased itself"
    assert merged_one.each == (("ball", "orb"), ("cat",), ("dog",))


def test_convert_command_states_its_errors(
    pico: DiffusersModel,
    pico_folders: dict[str, Path],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full, small = tmp_path / "full.safetensors", tmp_path / "small.safetensors"
    model = ["--model", pico_folders["sd1"]]
    assert run_json(capsys, "convert", files[0], *model, "--to", "dense", "--out", full)["conversion_error"] == 0
    assert all(key.endswith(".diff") for key in load_file(full))
    result = run_json(capsys, "convert", full, *model, "--rank", 2, "--out", small)
    original, cut = (read_erasure(path).bind(pico) for path in (full, small))
    whole = sum(d.norm() ** 2 for d in original.deltas.values()) ** 0.5
    missed = sum(float((cut[n].change() - original[n].change()).norm() ** 2) for n in original) ** 0.5
    assert result["conversion_error"] == pytest.approx(missed / whole, rel=0.02)


def published(folder: Path, model: DiffusersModel, deltas: DeltaSet) -> dict[str, Path]:
    """The forms in which ESD, UCE and concept ablation publish their weights."""
    weights = {
        name: model.base_weight(name).detach() + delta.change().detach() for name, delta in deltas.deltas.items()
    }
    short = {f"{name.removeprefix('unet.')}.weight": weight for name, weight in weights.items()}
    whole = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()} | short
    made = {name: folder / name for name in ("esd.safetensors", "uce.safetensors", "full.pt", "nested.bin")}
    save_file(short, made["esd.safetensors"])
    save_file({f"unet.{name}": weight for name, weight in short.items()}, made["uce.safetensors"])
    torch.save(whole, made["full.pt"])
    torch.save({"unet": short, "modifier_token": {}}, made["nested.bin"])
    return made


@pytest.mark.parametrize("form", ["esd.safetensors", "uce.safetensors", "full.pt", "nested.bin"])
def test_published_weights_become_an_erasure(
    pico: DiffusersModel,
    pico_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    deltas = merged([(random_deltas(pico, "cross-attention", 3), 0.3)])
    path, out = published(tmp_path, pico, deltas)[form], tmp_path / "out.safetensors"
    arguments = ["convert", path, "--model", pico_folders["sd1"], "--concept", "ball", "--out", out]
    result = run_json(capsys, *arguments)
    assert result["layers"] == len(deltas) and result["left_out"] == []
    stored = read_erasure(out)
    assert stored.manifest is not None and stored.manifest.words == ("ball",)
    torch.testing.assert_close(
        predict(pico, (stored.bind(pico), 1.0)), predict(pico, (deltas, 1.0)), atol=2e-3, rtol=1e-2
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rounding_of_a_published_file_is_no_change(
    pico: DiffusersModel,
    pico_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dtype: torch.dtype,
) -> None:
    """Most files are published in 16 bits, of bases in 32."""
    state = pico.unet.state_dict()
    name = next(name for name in state if name.endswith("attn2.to_v.weight"))
    edit = 0.05 * torch.outer(torch.linspace(-1, 1, len(state[name])), torch.linspace(1, 2, state[name].shape[1]))
    torch.save({key: (t + edit if key == name else t).to(dtype) for key, t in state.items()}, tmp_path / "half.pt")
    arguments = ["--model", pico_folders["sd1"], "--concept", "x", "--out", tmp_path / "o.safetensors"]
    result = run_json(capsys, "convert", tmp_path / "half.pt", *arguments)
    assert result["layers"] == 1 and result["left_out"] == []
    (change,) = read_erasure(tmp_path / "o.safetensors").changes.values()
    assert isinstance(change, LowRankDelta) and change.rank == 1
    assert float((change.change() - edit).norm() / edit.norm()) < 8 * torch.finfo(dtype).eps
    torch.save({key: t.to(dtype) for key, t in state.items()}, tmp_path / "same.pt")
    (tmp_path / "o.safetensors").unlink()
    assert main(["convert", str(tmp_path / "same.pt"), *map(str, arguments)]) == 3
    assert "nothing to convert" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_more_of_a_change_is_lost_than_the_file_itself_rounded_away(
    pico: DiffusersModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    """A change as trainings make it: small, some directions stronger than the rest, and of full rank."""
    torch.manual_seed(0)
    edits, tensors = {}, {}
    for name in (name for name in pico.layers() if ".attn2." in name):
        base = pico.base_weight(name).detach()
        few = torch.randn(len(base), 3) @ torch.randn(3, base.shape[1])
        edit = few / few.norm() + torch.randn_like(base) / (2 * base.numel() ** 0.5)
        edits[name] = 0.02 * edit * base.norm() / edit.norm()
        tensors[f"{name.removeprefix('unet.')}.weight"] = (base + edits[name]).to(dtype)
    save_file(tensors, tmp_path / "esd.safetensors")
    found = read_foreign(tmp_path / "esd.safetensors", pico, pico.other_parameters())
    kept, _ = low_rank(found.deltas, noise=found.noise)
    assert set(kept) == set(edits)
    stored = {name: tensors[f"{name.removeprefix('unet.')}.weight"].float() - pico.base_weight(name) for name in edits}
    missed = sum(float((kept[name].change() - edit).detach().square().sum()) for name, edit in edits.items())
    rounded = sum(float((stored[name] - edit).detach().square().sum()) for name, edit in edits.items())
    assert missed < 1.6**2 * rounded


def test_what_no_lora_can_hold_is_named(
    pico: DiffusersModel, pico_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: tensor.clone() for name, tensor in pico.unet.state_dict().items()}
    state["conv_norm_out.weight"] += 0.5
    state["conv_out.weight"] += 0.01
    torch.save(state, tmp_path / "norms.pt")
    arguments = ["--model", pico_folders["sd1"], "--concept", "x", "--out", tmp_path / "o.safetensors"]
    result = run_json(capsys, "convert", tmp_path / "norms.pt", *arguments)
    assert result["left_out"] == ["conv_norm_out.weight"] and 0.9 < float(str(result["left_out_share"])) < 1


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("evil-ran"),))  # type: ignore[return-value]


def test_unsafe_or_foreign_weights_are_refused(
    pico: DiffusersModel,
    pico_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "noise.pt").write_bytes(b"\x80\x04nonsense")
    torch.save({"other.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    torch.save({"conv_out.weight": torch.randn(4, 32, 3, 3) * 9}, tmp_path / "far.pt")
    torch.save({"conv_out.weight": torch.zeros(2, 2)}, tmp_path / "shape.pt")
    torch.save({"conv_out.weight": pico.unet.get_parameter("conv_out.weight").detach()}, tmp_path / "same.pt")
    for name, expected in (
        ("evil.pt", "only plain weights are read"),
        ("noise.pt", "no file of weights"),
        ("missing.pt", "cannot be read"),
        ("other.pt", "no weight of this model's UNet or text encoder"),
        ("far.pt", "another base"),
        ("shape.pt", "but this model's is"),
        ("same.pt", "nothing to convert"),
    ):
        arguments = ["--model", str(pico_folders["sd1"]), "--concept", "x", "--out", str(tmp_path / "o.safetensors")]
        assert main(["convert", str(tmp_path / name), *arguments]) == 3
        assert expected in capsys.readouterr().err, name
    assert not (tmp_path / "evil-ran").exists() and not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_baked_checkpoint_paints_as_with_the_erasure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    folder = DiffusersModel.load(write_pico(tmp_path / "model", family, real_vocabulary=True))
    path = write_checkpoint(tmp_path / "model.safetensors", folder)
    model = DiffusersModel.load(path)
    deltas = random_deltas(model, "full+text-encoder", 4)
    write_erasure(tmp_path / "e.safetensors", as_erasure(model, deltas), model, torch.float32)
    out = tmp_path / "baked.safetensors"
    run_json(capsys, "bake", "--model", path, "--erasure", f"{tmp_path / 'e.safetensors'}:0.5", "--out", out)
    expected = predict(model, (deltas, 0.5))
    torch.testing.assert_close(predict(DiffusersModel.load(out)), expected, atol=1e-4, rtol=1e-3)
    before, after = load_file(path), load_file(out)
    assert before.keys() == after.keys()
    assert any(torch.equal(before[key], after[key]) for key in before), "norms and the autoencoder stay as they are"


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_baking_copies_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Of SDXL a copy would be ten gigabytes."""
    model = DiffusersModel.load(write_pico(tmp_path, family, real_vocabulary=True))
    before = {key: tensor.clone() for key, tensor in bake._tensors(model).items()}
    chosen = ["unet.conv_out", *(name for name in model.layers() if name.endswith("layers.0.self_attn.k_proj"))]
    deltas = DeltaSet({name: random_deltas(model, "full+text-encoder")[name] for name in chosen})
    write_erasure(tmp_path / "e.safetensors", as_erasure(model, deltas), model, torch.float32)
    monkeypatch.setattr(torch.Tensor, "clone", None)
    found = bake.baked_tensors(model, [str(tmp_path / "e.safetensors"), f"{tmp_path / 'e.safetensors'}:0"])
    monkeypatch.undo()
    after = bake._tensors(model)
    assert set(found) == {key for key in before if not torch.equal(before[key], after[key])}
    assert len(found) == len(chosen) and all(torch.equal(found[key], after[key]) for key in found)


def test_baking_keeps_each_tensors_type_and_refuses_what_it_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = DiffusersModel.load(write_pico(tmp_path / "model", "sd1", real_vocabulary=True))
    whole = load_file(write_checkpoint(tmp_path / "whole.safetensors", folder))
    path, out, erasure = (tmp_path / f"{name}.safetensors" for name in ("small", "baked", "e"))
    eighth = {k: t.to(torch.float8_e4m3fn) for k, t in whole.items() if k.endswith("attn2.to_k.weight")}
    save_file({key: tensor.half() for key, tensor in whole.items()} | eighth, path)
    model = DiffusersModel.load(path)
    write_erasure(erasure, as_erasure(model, random_deltas(model, "cross-attention-kv", 4)), model)
    result = run_json(capsys, "bake", "--model", path, "--erasure", erasure, "--out", out)
    before, after = load_file(path), load_file(out)
    changed = [key for key in before if not torch.equal(before[key].float(), after[key].float())]
    assert result["changed"] == len(changed) > 0 and set(eighth) <= set(changed)
    assert all(after[key].dtype == before[key].dtype for key in before)

    huge = merged([(random_deltas(model, "full", 4), 1e7)])
    write_erasure(erasure, as_erasure(model, huge), model)
    arguments = ["bake", "--model", path, "--erasure", erasure, "--out", tmp_path / "huge.safetensors"]
    assert main([*map(str, arguments)]) == 3
    assert "becomes too large for the type" in capsys.readouterr().err
    assert not (tmp_path / "huge.safetensors").exists()


def test_changes_that_cancel_out_are_no_erasure(
    pico_folders: dict[str, Path], files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--model", str(pico_folders["sd1"]), "--out", str(tmp_path / "nothing.safetensors")]
    assert main(["merge", f"{files[0]}:0", f"{files[1]}:0", *out]) == 3
    assert "cancel out or are zero" in capsys.readouterr().err
    assert main(["merge", f"{files[0]}:1", f"{files[0]}:-1", *out]) == 3, "what is left is rounding"
    assert "cancel out or are zero" in capsys.readouterr().err
    assert main(["convert", str(files[0]), "--rank", "-1", *out]) == 3
    assert "--rank is -1" in capsys.readouterr().err
    assert not (tmp_path / "nothing.safetensors").exists()
