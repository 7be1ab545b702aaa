"""Strangers' files: each is refused with one clear sentence, in bounded time and memory, and none is half believed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import GOOD, Case, hostile_files, manifest, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from erasure_core import read_erasure
from erasure_core.errors import ErasureError, InvalidFile, WrongBase
from erasure_core.foreign import read_foreign
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.plain_weights import load_weights

CASES = hostile_files()
LAYER = "down_blocks_9_attentions_0_transformer_blocks_0_attn2_to_k"
SECONDS = 5.0
MEGABYTES = 400


def check_sentence(error: ErasureError, path: Path) -> None:
    """One line of bearable length that names the file."""
    text = str(error)
    assert str(path) in text and text.endswith(".") and "\n" not in text and len(text) < 500 + len(str(path)), text


def test_there_are_enough_of_them() -> None:
    assert len(CASES) == len({name for name, _, _ in CASES}) >= 60


@pytest.mark.parametrize("case", CASES, ids=[name for name, _, _ in CASES])
def test_refused_with_one_sentence(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(case[1])
    with pytest.raises(InvalidFile) as caught:
        read_erasure(path)
    assert case[2] in str(caught.value)
    check_sentence(caught.value, path)


BOUNDED = """
import re, resource, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from erasure_core import read_erasure
from erasure_core.errors import InvalidFile
from hostile import hostile_files

path, cases = Path(sys.argv[3]), hostile_files()
now = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[4]) * 2**20,) * 2)
for name, content, _ in cases:
    path.write_bytes(content)
    started = time.process_time()
    try:
        read_erasure(path)
    except InvalidFile:
        took = time.process_time() - started
        if took > float(sys.argv[5]):
            print(f"{name}: {took} s")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    here = Path(__file__).parents[1]
    arguments = map(str, [here.parent, here, tmp_path / "x.safetensors", MEGABYTES, SECONDS])
    done = subprocess.run([sys.executable, "-c", BOUNDED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stdout


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "dangling.safetensors").symlink_to("nowhere")
    (tmp_path / "endless.safetensors").symlink_to("/dev/zero")
    (tmp_path / "to_pipe.safetensors").symlink_to("pipe.safetensors")
    for name, expected in (
        ("folder", "it is a folder, a pipe or a device"),
        ("pipe", "it is a folder, a pipe or a device"),
        ("to_pipe", "it is a folder, a pipe or a device"),
        ("endless", "it is a folder, a pipe or a device"),
        ("loop", "cannot be read"),
        ("dangling", "No such file"),
        ("missing", "No such file"),
        ("x" * 300, "name too long"),
        ("zero\0byte", "zero byte"),
    ):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(InvalidFile) as caught:
            read_erasure(path)
        assert expected.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    "content, expected",
    [
        (tensors(**{f"lora_unet_{LAYER}.diff": np.zeros((2, 2))}), "layers that this model does not have"),
        (tensors(**{"lora_unet_..___etc_passwd.diff": np.zeros((2, 2))}), "layers that this model does not have"),
        (tensors(**{"lora_unet_<script>.diff": np.zeros((2, 2))}), "layers that this model does not have"),
        (tensors(**{"lora_te3_x.diff": np.zeros((2, 2))}), "layers that this model does not have"),
        (tensors(**{"lora_unet_conv_out.lora_up.weight": np.ones((4, 1)),
                    "lora_unet_conv_out.lora_down.weight": np.ones((1, 9))}), "as a (4, 9) weight"),
        (tensors(**{"lora_unet_out_2.diff": np.zeros((4, 64, 3, 3))}), "as a (4, 64, 3, 3) weight"),
        (tensors(**{"lora_unet_out_2.diff": np.zeros((32, 4, 3, 3))}), "as a (32, 4, 3, 3) weight"),
        (tensors(**{"lora_unet_conv_out.lora_up.weight": np.ones((1, 10**6)),
                    "lora_unet_conv_out.lora_down.weight": np.ones((10**6, 1))}), "as a (1, 1) weight"),
        (tensors({"erasure": json.dumps(GOOD | {"family": "flux"})},
                 **{"lora_unet_out_2.diff": np.zeros((4, 32, 3, 3))}), "another kind of model: flux"),
        (tensors({"erasure": json.dumps(GOOD)}, **{"lora_unet_out_2.diff": np.ones((4, 32, 3, 3))}), "another base"),
        (tensors({"erasure": json.dumps(GOOD | {"base_sketch": [1e308] * 64})},
                 **{"lora_unet_out_2.diff": np.ones((4, 32, 3, 3))}), "another base"),
        (tensors({"erasure": json.dumps(GOOD | {"base_sketch": []})},
                 **{"lora_unet_out_2.diff": np.ones((4, 32, 3, 3))}), "another base"),
    ],
)  # fmt: skip
def test_sound_files_of_another_model_are_refused(
    pico: DiffusersModel, content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    stored = read_erasure(path)
    with pytest.raises(WrongBase) as caught:
        stored.bind(pico)
    assert expected in str(caught.value)
    check_sentence(caught.value, path)


def test_markup_in_a_manifest_is_text(tmp_path: Path) -> None:
    from dataclasses import replace

    from proving_ground.demo_page import page
    from proving_ground.evaluation import Evaluation
    from proving_ground.figures import Figure

    path = tmp_path / "x.safetensors"
    path.write_bytes(manifest(words=["<script>alert(1)</script>"], method="<b>", settings={"seed": 1}))
    stored = read_erasure(path).manifest
    assert stored is not None and stored.words == ("<script>alert(1)</script>",)
    shares = {name: Figure(name, 0.5, 8) for name in ("named", "unnamed", "descriptions", "kept")}
    seen = Evaluation(shares, Figure("intact", 1.0, 8), Figure("unasked", 0.0, 8), {})
    shown = page(replace(stored, dtype="float32"), {"untouched": seen, "erased": seen}, 1000, 1.0)
    assert "<script>" not in shown and "<b>" not in shown and "&lt;script&gt;" in shown


@pytest.fixture(scope="module")
def sound() -> bytes:
    rng = np.random.default_rng(0)
    factors = {"up": rng.normal(size=(4, 2)), "down": rng.normal(size=(2, 3)), "alpha": 2.0}
    return tensors({"erasure": json.dumps(GOOD)}, kind="F16", **factors)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_but_never_crashes(
    sound: bytes, pico: DiffusersModel, tmp_path: Path, data: st.DataObject
) -> None:
    content, path = bytearray(sound), tmp_path / "x.safetensors"
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))  # a mutation may have left nothing
        piece = data.draw(st.sampled_from([b"[", b'"', b"}", b"-", b"9", b"\\", b"e9", b"\0", b"\xff", b"null"]))
        kind = data.draw(st.sampled_from(["replace", "insert", "remove", "cut"]))
        if kind == "cut":
            del content[place + 1 :]
        else:
            content[place : place + (0 if kind == "insert" else len(piece))] = b"" if kind == "remove" else piece
        if data.draw(st.booleans()):  # a true length lets the mutation reach what lies behind it
            content[:8] = max(0, sound.index(b"}}", 8) + 2 - 8 + len(content) - len(sound)).to_bytes(8, "little")
    path.write_bytes(content)
    try:
        read_erasure(path).bind(pico)
    except ErasureError as error:
        assert "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(GOOD)), value=JSON)
def test_a_manifest_with_any_value_is_read_whole_or_refused(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(manifest(**{name: value}))
    try:
        stored = read_erasure(path).manifest
    except ErasureError as error:
        assert "\n" not in str(error)
    else:
        assert stored is not None
        again = json.loads(stored.to_json())
        assert f"{again['storage_error']:.1e}" and isinstance(again["words"], list)


def hostile_weights(folder: Path, model: DiffusersModel) -> list[tuple[Path, str]]:
    """Published weights that are not, each with a part of the sentence that refuses it."""
    weight = model.base_weight("unet.conv_out").detach()
    shape = tuple(weight.shape)
    circle: dict[str, object] = {}
    circle["circle"] = circle
    pickles: dict[str, tuple[object, str]] = {
        "nan.pt": ({"conv_out.weight": weight * float("nan")}, "not finite"),
        "inf.bin": ({"conv_out.weight": weight + float("inf")}, "not finite"),
        "beyond.pth": ({"conv_out.weight": weight.double() + 1e300}, "not finite"),
        "endless.pt": ({"conv_out.weight": torch.zeros(1).expand(10**7, 10**7)}, "in a form that weights do not have"),
        "sparse.pt": ({"conv_out.weight": torch.eye(4).to_sparse()}, "in a form that weights do not have"),
        "complex.pt": ({"conv_out.weight": weight + 1j}, "in a form that weights do not have"),
        "twice.pt": ({"unet.conv_out.weight": weight, "module.conv_out.weight": weight + 1}, "twice"),
        "circle.pt": (circle, "holds no weights"),
        "list.pt": ([weight], "holds no weights"),
        "text.pt": ("hello", "holds no weights"),
    }
    for name, (content, _) in pickles.items():
        torch.save(content, folder / name)
    (folder / "empty.pt").write_bytes(b"")
    (folder / "folder.pt").mkdir()
    os.mkfifo(folder / "pipe.pt")
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", b"\0" * 2**24)
    down, up = torch.ones(2, *shape[1:]), torch.ones(shape[0], 2, 1, 1)
    pair = {"unet.conv_out.lora_A.weight": down, "unet.conv_out.lora_B.weight": up}
    factors: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "one_factor": ({"unet.conv_out.lora_A.weight": down}, "incomplete or unknown"),
        "unknown_layer": ({name.replace("conv_out", "nose"): t for name, t in pair.items()}, "incomplete or unknown"),
        "other_shape": (pair | {"unet.conv_out.lora_A.weight": down[:, :3]}, "give the base model that it was made on"),
        "other_rank": (pair | {"unet.conv_out.lora_A.weight": down[:1]}, "incomplete or unknown"),
        "no_rank": ({name: t[:0] if "A" in name else t[:, :0] for name, t in pair.items()}, "incomplete or unknown"),
        "dora": (pair | {"unet.conv_out.lora_magnitude_vector": torch.ones(shape[0])}, "no plain LoRA"),
        "a_number": (pair | {"unet.conv_out.lora_A.weight": torch.tensor(1.0)}, "incomplete or unknown"),
        "no_alpha": (pair | {"unet.conv_out.alpha": torch.zeros(0)}, "holds 0 numbers as the scale"),
        "too_large": ({name: t * 1e30 for name, t in pair.items()}, "not finite"),
    }
    for name, (content_of, _) in factors.items():
        save_file({key: t.contiguous() for key, t in content_of.items()}, folder / f"{name}.safetensors")
    notes = {
        "no_json": "x",
        "patterns": '{"unet.alpha_pattern": {"a": 1}}',
        "two": '{"a.lora_alpha": 1, "b.lora_alpha": 2}',
    }
    for name, note in notes.items():
        save_file(pair, folder / f"{name}.safetensors", {"lora_adapter_metadata": note})
    return [
        *((folder / name, expected) for name, (_, expected) in pickles.items()),
        *((folder / f"{name}.safetensors", expected) for name, (_, expected) in factors.items()),
        *((folder / f"{name}.safetensors", "notes on its LoRA") for name in notes),
        (folder / "empty.pt", "only plain weights are read"),
        (folder / "folder.pt", "a folder, a pipe or a device"),
        (folder / "pipe.pt", "a folder, a pipe or a device"),
        (folder / "bomb.pt", "unpacks from"),
    ]


def test_hostile_weights_are_not_converted(pico: DiffusersModel, tmp_path: Path) -> None:
    for path, expected in hostile_weights(tmp_path, pico):
        with pytest.raises(ErasureError) as caught:
            read_foreign(path, pico, pico.other_parameters())
        assert expected in str(caught.value), path.name
        check_sentence(caught.value, path)


def forged(program: bytes) -> bytes:
    """An archive in which Python's reader finds all entries but the last, and torch's finds that as well."""
    size, start = struct.unpack("<II", program[-10:-2])
    listed = program[start : start + size]
    last = listed.rindex(b"PK\x01\x02")
    before, room = listed.rindex(b"PK\x01\x02", 0, last), size - last
    without = listed[: before + 32] + struct.pack("<H", room) + listed[before + 34 : last] + b" " * room
    return program[:start] + listed + without + program[-22:]


def test_a_program_is_not_given_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.6 torch runs it, even where it is asked for weights only."""
    plain, hidden = tmp_path / "plain.pt", tmp_path / "hidden.pt"
    torch.save({"x.weight": torch.zeros(2)}, plain)
    with zipfile.ZipFile(plain, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/constants.pkl", b"\x80\x02}.")
    hidden.write_bytes(forged(plain.read_bytes()))
    with zipfile.ZipFile(hidden) as archive:
        assert not any("constants" in name for name in archive.namelist())
    monkeypatch.setattr(torch, "load", None)
    for path in (plain, hidden):
        with pytest.raises(InvalidFile, match="is a program") as caught:
            load_weights(path)
        check_sentence(caught.value, path)
