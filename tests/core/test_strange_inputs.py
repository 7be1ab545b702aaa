"""Files, folders and terminals that do not fit: one clear sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pico import write_checkpoint, write_pico
from PIL import Image
from random_changes import as_erasure, random_deltas
from safetensors.torch import load_file, save_file

from erasure_core import read_erasure, write_erasure
from erasure_core.cli.main import main
from erasure_core.concept_pictures import read_picture
from erasure_core.delta import DeltaSet, LowRankDelta
from erasure_core.erasing import applied
from erasure_core.errors import InvalidFile, ModelError, OutputError
from erasure_core.foreign import read_foreign
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.manifest import MAX_LENGTH, Manifest
from erasure_core.plain_weights import load_weights
from erasure_core.safe_files import write_bytes
from erasure_core.sampling import sample

KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def erased(pico: DiffusersModel, tmp_path: Path) -> Path:
    path = tmp_path / "ball.safetensors"
    write_erasure(path, as_erasure(pico, random_deltas(pico, "cross-attention-kv", 2)), pico)
    return path


def refused(capsys: pytest.CaptureFixture[str], code: int, says: str, *arguments: object) -> None:
    assert main([str(a) for a in arguments]) == code
    assert says in capsys.readouterr().err


def test_the_model_is_never_the_result(
    pico: DiffusersModel,
    pico_folders: dict[str, Path],
    erased: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = write_checkpoint(tmp_path / "model.safetensors", pico)
    before = one.read_bytes()
    part = pico_folders["sd1"] / "unet" / "diffusion_pytorch_model.safetensors"
    erase = ["erase", "--concept", "ball", "--method", "closed_form", "--overwrite"]
    refused(capsys, 5, "is the model itself", *erase, "--model", one, "--out", one)
    refused(capsys, 5, "a part of it", *erase, "--model", pico_folders["sd1"], "--out", part)
    (tmp_path / "link.safetensors").symlink_to(one)
    refused(capsys, 5, "is the model itself", *erase, "--model", one, "--out", tmp_path / "link.safetensors")
    refused(capsys, 5, "itself", "bake", "--model", one, "--erasure", erased, "--out", one, "--overwrite")
    assert one.read_bytes() == before
    (tmp_path / "d.safetensors").mkdir()
    refused(capsys, 5, "is a folder", *erase, "--model", one, "--out", tmp_path / "d.safetensors")
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.safetensors")
    refused(capsys, 5, "UTF-8", *erase, "--model", one, "--out", strange)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_what_is_no_file_is_never_replaced(
    pico_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root, a link to /dev/null would have replaced the device of the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    link = tmp_path / "x.safetensors"
    link.symlink_to(tmp_path / "pipe")
    for write in (lambda: write_bytes(link, b""), lambda: write_bytes(tmp_path / "pipe", b"")):
        with pytest.raises(OutputError, match="a pipe or a device"):
            write()
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2
    erase = ("erase", "--model", pico_folders["sd1"], "--concept", "ball", "--method", "closed_form", "--out")
    refused(capsys, 5, "a pipe or a device", *erase, link, "--overwrite")
    (tmp_path / "lost.safetensors").symlink_to(tmp_path / "nowhere" / "y.safetensors")
    refused(capsys, 5, "a link into a folder that does not exist", *erase, tmp_path / "lost.safetensors")
    os.mkfifo(tmp_path / ".y.safetensors.lock")
    refused(capsys, 5, "is in its way", *erase, tmp_path / "y.safetensors")


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_no_manifest_is_written_that_is_not_read(erased: Path) -> None:
    manifest = read_erasure(erased).manifest
    assert manifest is not None
    accents = replace(manifest, settings={"note": "é" * (MAX_LENGTH - 5000)})
    assert Manifest.from_json(accents.to_json()).settings == accents.settings
    with pytest.raises(OutputError, match="at most"):
        replace(manifest, settings={"note": "x" * MAX_LENGTH}).to_json()
    halved = json.dumps(json.loads(manifest.to_json()) | {"method": "\ud800"})
    with pytest.raises(InvalidFile, match="cannot be read"):
        Manifest.from_json(halved)


def test_what_peft_notes_beside_the_factors_counts(pico: DiffusersModel, tmp_path: Path) -> None:
    rows, columns = pico.base_weight(f"unet.{KEY}").shape
    path = tmp_path / "adapter_model.safetensors"
    factors = {"lora_A": torch.randn(4, columns), "lora_B": torch.randn(rows, 4)}
    save_file({f"unet.{KEY}.{name}.weight": factor for name, factor in factors.items()}, path)
    (plain,) = read_foreign(path, pico, {}).deltas.deltas.values()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 64}))
    (scaled,) = read_foreign(path, pico, {}).deltas.deltas.values()
    assert scaled.norm() == pytest.approx(16 * plain.norm())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 64, "use_rslora": True}))
    with pytest.raises(InvalidFile, match="cannot be used"):
        read_foreign(path, pico, {})


def test_foreign_weights_are_whole_and_said_once(pico: DiffusersModel, tmp_path: Path) -> None:
    weight = pico.base_weight(f"unet.{KEY}").detach() + 0.01
    (rows, columns), path = weight.shape, tmp_path / "esd.safetensors"
    strange = {f"text_encoder.layer{i}.weight": torch.zeros(1) for i in range(3)}
    save_file({f"{KEY}.weight": weight, **strange}, path)
    found = read_foreign(path, pico, pico.other_parameters())
    assert found.unread == tuple(sorted(strange)) and found.source(path)["unread"] == 3
    theirs = "middle_block.1.transformer_blocks.0.attn2.to_k"
    a, b = torch.ones(1, columns), torch.ones(rows, 1)
    one, other = {"lora_A.weight": a, "lora_B.weight": b}, {"lora.down.weight": a + 1, "lora.up.weight": b + 1}
    twice: list[dict[str, torch.Tensor]] = [
        {f"{KEY}.weight": weight, f"{theirs}.weight": weight + 1},
        {f"{KEY}.{end}": factor for end, factor in (one | other).items()},
        {f"{module}.{end}": factor.clone() for module in (KEY, theirs) for end, factor in one.items()},
    ]
    for tensors in twice:
        save_file(tensors, path)
        with pytest.raises(InvalidFile, match="twice"):
            read_foreign(path, pico, pico.other_parameters())


def test_a_pickle_cannot_claim_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"x.weight": torch.zeros(123)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidFile, match=r"older than torch 1\.6"):
        load_weights(path)
    with zipfile.ZipFile(path, "a") as behind:  # an archive for those who look at the end of a file
        behind.writestr("archive/version", "3\n")
        behind.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(InvalidFile, match=r"older than torch 1\.6"):
        load_weights(path)


def test_pictures_are_of_the_named_kinds_only(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(path, format="TIFF")
    with pytest.raises(InvalidFile, match="cannot be read as a picture"):
        read_picture(path, (8, 8))
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(InvalidFile, match="cannot be read as a picture"):
        read_picture(path, (8, 8))


def edited(folder: Path, part: str, **values: Any) -> Path:
    path = folder / part
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("unet/config.json", {"sample_size": [1, 2, 3]}, "latent pixels"),
        ("unet/config.json", {"sample_size": True}, "latent pixels"),
        ("unet/config.json", {"sample_size": 10**9}, "latent pixels"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 10**6]}, "cannot be .1000000 layers"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "cannot be .1000000 layers"),
        ("vae/config.json", {"layers_per_block": 10**6}, "cannot be .1000000 layers"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "noise schedule that cannot be"),
        ("scheduler/scheduler_config.json", {"beta_end": 5.0}, "noise schedule that cannot be"),
        ("scheduler/scheduler_config.json", {"beta_start": None}, "noise schedule that cannot be"),
        ("vae/config.json", {"scaling_factor": 0}, "an autoencoder whose scale is"),
        ("vae/config.json", {"scaling_factor": "x"}, "an autoencoder whose scale is"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}, "says it reads x tokens"),
        ("tokenizer/tokenizer_config.json", {"pad_token": None}, "without a token to fill prompts up"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": float("nan")}, "says it reads nan tokens"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 1}, "says it reads 1 tokens"),
    ],
)
def test_configurations_that_cannot_be(tmp_path: Path, part: str, values: dict[str, Any], says: str) -> None:
    folder = edited(write_pico(tmp_path / "model"), part, **values)
    with pytest.raises(ModelError, match=says):
        DiffusersModel.load(folder)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    folder, other = write_pico(tmp_path / "model"), write_pico(tmp_path / "other", text_width=128)
    (folder / "text_encoder").rename(tmp_path / "old")
    (other / "text_encoder").rename(folder / "text_encoder")
    with pytest.raises(ModelError, match="different models"):
        DiffusersModel.load(folder)
    with pytest.raises(ModelError, match="cannot be used"):
        DiffusersModel.load(tmp_path, device="meta")


def test_numbers_that_are_too_large_are_no_picture(pico: DiffusersModel) -> None:
    rows, columns = pico.base_weight(f"unet.{KEY}").shape
    huge = LowRankDelta(1e20 * torch.randn(1, columns), 1e20 * torch.randn(rows, 1))
    with applied(pico, [(DeltaSet({f"unet.{KEY}": huge}), 1.0)]), pytest.raises(ModelError, match="no finite numbers"):
        sample(pico, ["a ball"], [0], steps=2)


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell redirects the outputs")
@pytest.mark.parametrize("closed", ["full", "closed", "narrow"])
def test_a_terminal_that_takes_nothing(erased: Path, closed: str) -> None:
    """A full disk, a closed output and an encoding without the characters that are said."""
    tensors, path = load_file(erased), erased.with_name("cat.safetensors")
    manifest = read_erasure(erased).manifest
    assert manifest is not None
    save_file(tensors, path, {"erasure": replace(manifest, words=("猫",)).to_json()})
    redirection = {"full": ">/dev/full", "closed": ">&-", "narrow": ">/dev/null"}[closed]
    command = f'exec "{sys.executable}" -m erasure_core inspect "{path}" {redirection}'
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    root = Path(__file__).parents[2]
    done = subprocess.run(["sh", "-c", command], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (5 if closed == "full" else 0) and "Traceback" not in done.stderr
