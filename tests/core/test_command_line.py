"""The command line: what it makes, and one clear sentence with a non-zero exit code for everything that is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pico import write_checkpoint, write_pico
from PIL import Image
from safetensors.torch import load_file, save_file

from erasure_core import Concept, read_erasure
from erasure_core.chosen_words import chosen_words
from erasure_core.cli.erasure_arguments import split_strength
from erasure_core.cli.main import main
from erasure_core.cli.terminal import say, terminal_progress
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.progress import Report
from erasure_core.safe_files import LONGEST_NAME

QUICK = [
    "--method",
    "esd",
    "--no-replace",
    "--steps",
    "3",
    "--rank",
    "2",
    "--trajectories",
    "4",
    "--trajectory-steps",
    "3",
    "--batch",
    "2",
]


def run(*arguments: object) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse leaves this way
        return int(stop.code or 0)


@pytest.fixture
def model(pico_folders: dict[str, Path]) -> Path:
    return pico_folders["sd1"]


@pytest.fixture
def erased(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ball.safetensors"
    assert run("erase", "--model", model, "--concept", "ball", "--method", "closed_form", "--out", path) == 0
    return path


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard error, which must be the one error sentence."""
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("concept-erasure: "), error
    assert "Traceback" not in error
    return error


def test_erase_generate_inspect(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep, prompts, out = tmp_path / "keep.txt", tmp_path / "prompts.txt", tmp_path / "new" / "ball.safetensors"
    keep.write_text("# kept\na red box\n\n")
    prompts.write_text("a ball\na cat\n")
    arguments = ["--concept", "ball", "--word", "orb", "--instead", "box", "--keep", "cat", "--keep-file", keep]
    assert run("erase", "--model", model, *arguments, "--method", "esd", "--out", out, "--json", *QUICK) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["added"], result["alternative"], result["instead"]) == ([], "box", [])
    assert result["steps"] == 3 and result["words"] == ["ball", "orb"] and result["bytes"] == out.stat().st_size
    assert [path.name for path in out.parent.iterdir()] == ["ball.safetensors"]

    assert run("inspect", out, "--model", model, "--json") == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert manifest["keep"][:2] == ["cat", "a red box"] and manifest["alternative"] == "box"

    pictures = tmp_path / "pictures"
    arguments = ["--erasure", f"{out}:0.8", "--prompts-file", prompts, "--count", 2, "--steps", 2, "--seed", 5]
    assert run("generate", "--model", model, *arguments, "--out", pictures, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [
        ("a ball", 5),
        ("a ball", 6),
        ("a cat", 5),
        ("a cat", 6),
    ]
    assert all(Image.open(line["path"]).size == (64, 64) for line in lines)


def test_erase_tells_what_the_method_measured_at_its_end(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--steps", 2, "--trajectories", 2, "--trajectory-steps", 3, "--batch", 1, "--overwrite"]
    base = ["erase", "--model", model, "--concept", "ball", "--out", tmp_path / "ball.safetensors", *settings]
    assert run(*base, "--method", "all_but_one") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("At the end of training: ") and "drift" in last and "residual" in last
    assert run(*base, "--method", "all_but_one", "--json") == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures and all(f"{name} {value:.3g}" in last for name, value in figures.items())
    assert run(*base, "--method", "esd") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "it measures nothing"


def test_erase_tells_what_was_chosen_for_the_user(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the result says it, for nobody reads a manifest to learn what else is erased."""
    base = ["erase", "--model", model, "--method", "closed_form", "--overwrite", "--out", tmp_path / "x.safetensors"]
    assert run(*base, "--concept", "ball", "--instead", "box", "--also", "cat=dog") == 0
    assert capsys.readouterr().out.endswith("; in its place: box for ball; dog for cat.\n")
    assert run(*base, "--concept", "ball", "--no-replace", "--keep", "a ball on a table") == 0
    told = capsys.readouterr()
    assert told.out.endswith("; nothing takes its place.\n") and told.err.startswith(
        "Not kept: 'a ball on a table', as"
    )

    def found(model: object, concept: Concept, *_: object) -> Concept:
        return replace(concept.grown([("orb", "ball")]), alternative="ring")

    monkeypatch.setattr("erasure_core.erasing._complete", found)
    assert run(*base, "--concept", "ball") == 0
    added = "words added: orb (to spare one, add a kept prompt that says it).\n"
    assert capsys.readouterr().out.endswith(f"; in its place: ring (found in the model); {added}")


def test_what_takes_the_place_of_each_of_several_concepts_is_told() -> None:
    def told(concept: Concept, made: Concept) -> str:
        of = SimpleNamespace(words=made.words, alternative=made.alternative, instead=made.instead)
        return chosen_words(concept, of)  # type: ignore[arg-type]

    given = Concept(("ball", "cat"), None, (), (("ball", "box"),))
    assert told(given, given) == "in its place: box for ball; nothing for cat"
    found = replace(given, instead=(("ball", "box"), ("cat", "dog")))
    assert told(given, found) == "in its place: box for ball; dog for cat (that of cat found in the model)"


def test_a_phrase_with_commas_is_taken_as_one_and_that_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["erase", "--model", model, "--method", "closed_form", "--overwrite", "--out", tmp_path / "x.safetensors"]
    assert run(*base, "--concept", "ball, box") == 0
    told = capsys.readouterr().err
    assert "'ball, box' is taken as one phrase" in told and "--also" in told and "--word" in told
    assert run(*base, "--concept", "ball", "--also", "box") == 0 and "phrase" not in capsys.readouterr().err
    assert run("explore", "--model", model, "--concept", "a; b", "--levels", "none", "--out", tmp_path / "map") == 3
    assert "'a; b' is taken as one phrase" in capsys.readouterr().err


def test_inspect_tells_each_words_own_alternative(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.safetensors"
    also = ["--also", "cat=dog", "--also", "bird=dog"]
    base = ["erase", "--model", model, "--method", "closed_form", "--concept", "ball", "--instead", "box", *also]
    assert run(*base, "--out", path) == 0 and capsys.readouterr()
    assert run("inspect", path) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  instead"))
    assert row.split(maxsplit=1)[1] == "box for ball; dog for cat, bird"


def test_strength_zero_paints_the_untouched_picture(model: Path, erased: Path, tmp_path: Path) -> None:
    def paint(folder: str, *erasure: object) -> np.ndarray:
        options = ["--prompt", "a ball", "--steps", 3, "--out", tmp_path / folder]
        assert run("generate", "--model", model, *options, *erasure) == 0
        return np.asarray(Image.open(tmp_path / folder / "0000_0.png"))

    untouched = paint("a")
    assert np.array_equal(paint("b", "--erasure", f"{erased}:0"), untouched)
    assert not np.array_equal(paint("c", "--erasure", f"{erased}:5"), untouched)


def test_no_picture_is_ever_replaced(model: Path, erased: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    options = ["generate", "--model", model, "--prompt", "a ball", "--prompt", "a cat", "--steps", 1, "--out", out]
    assert run(*options) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(before) == ["0000_0.png", "0001_0.png"]
    (out / "00041-7.png").write_bytes(b"the web UI's")
    assert run(*options) == 0
    assert sorted({path.name for path in out.iterdir()} - before.keys()) == ["00041-7.png", "0042_0.png", "0043_0.png"]
    given = ["--erasure", erased, "--caption", "a ball", "--picture", out / "0000_0.png", "--steps", 2, "--out", out]
    assert run("purify", "--model", model, *given) == 0
    assert (out / "0044_0000_0.png").exists()
    assert all((out / name).read_bytes() == content for name, content in before.items())


def test_one_picture_does_not_depend_on_its_batch(model: Path, tmp_path: Path) -> None:
    options = ["generate", "--model", model, "--prompt", "a ball", "--steps", 3, "--count", 3]
    assert run(*options, "--out", tmp_path / "one", "--batch", 1) == 0
    assert run(*options, "--out", tmp_path / "all", "--batch", 3) == 0
    for seed in range(3):
        one, many = (np.asarray(Image.open(tmp_path / f / f"0000_{seed}.png"), np.int16) for f in ("one", "all"))
        assert np.abs(one - many).max() <= 1


def test_bad_concepts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["erase", "--model", model, "--out", tmp_path / "x.safetensors", "--concept"]
    for arguments, expected in (
        ([""], "concept is empty"),
        (["  "], "concept is empty"),
        (["x" * 5000], "5000 characters long; at most 300"),
        (["a\x00b"], "control characters"),
        (["ball", "--instead", "Ball"], "also the concept to erase"),
        (["ball", "--keep", "a ball"], "both erased and kept"),
        (["ball", "--save-every", "nan"], "--save-every is nan"),
        (["ball", "--harden", "-1"], "--harden is -1; it must be a number of rounds, 0 or more"),
        (["ball", "--harden", "1", "--harden-guidance", "0.5"], "-guidance is 0.5; it must lie between 1 and 30"),
        (["ball", "--harden-budget", "5m"], "--harden-budget is for rounds of searching; give their number with"),
        (["ball", "--harden-guidance", "2"], "--harden-guidance is for rounds of searching; give their number with"),
        (["ball", "--method", "rece", "--effort", "low-vram"], "--effort is for methods that train, and rece solves"),
        (["ball", "--method", "esd", "--pictures", "."], "esd reads no pictures; leave --pictures out, or choose one"),
        (["ball", "--pictures", "x" * 300], "holds no pictures"),
        (["one two " * 35], "tokens, but only"),
        (["ball", "--method", "magic"], "no method 'magic'; choose from all_but_one, auto"),
        (["ball", "--layers", "nose"], "layers is 'nose'; choose from"),
        (["ball", "--learning-rate", "nan"], "learning_rate is nan; it must lie between"),
        (["ball", "--steps", "0"], "steps is 0; it must lie between"),
        (["ball", "--method", "closed_form", "--steps", "5"], "--steps is not a setting of the method closed_form"),
        (["ball", "--keep-file", tmp_path / "none.txt"], "none.txt cannot be read"),
    ):
        assert run(*base, *arguments) == 3, arguments
        assert expected in sentence(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("explore", "--budget 0s"),
        ("explore", "--budget nan"),
        ("report", "--budget 25h"),
        ("erase", "--harden-budget 0.5s"),
    ],
)
def test_a_search_that_is_too_short_or_too_long_is_told_by_its_flag(
    capsys: pytest.CaptureFixture[str], command: str, given: str
) -> None:
    flag, budget = given.split()
    assert run(command, flag, budget) == 2
    assert f"argument {flag}: it is {budget}; give 1s to 24h" in capsys.readouterr().err


@pytest.fixture(scope="module")
def on_base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An erasure, and a checkpoint of other weights than its base model's, as a fine-tune is."""
    folder = tmp_path_factory.mktemp("bases")
    base, tune = (write_pico(folder / f"{seed}", seed=seed, real_vocabulary=True) for seed in (0, 1))
    path, pair = folder / "ball.safetensors", ["--concept", "ball", "--instead", "box", "--method", "closed_form"]
    assert run("erase", "--model", base, *pair, "--keep", "a cat", "--neighbours", 0, "--out", path) == 0
    return path, write_checkpoint(folder / "tune.safetensors", DiffusersModel.load(tune))


@pytest.mark.parametrize("command", ["merge", "convert", "bake", "inspect"])
def test_another_base_is_allowed_where_that_is_advised(
    command: str, on_base: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (erased, fine_tune), out = on_base, tmp_path / "made.safetensors"
    given: list[object] = ["--erasure", erased] if command == "bake" else [erased]
    asked = [command, *given, "--model", fine_tune, *([] if command == "inspect" else ["--out", out])]
    assert run(*asked) == 3 and "or allow another base" in sentence(capsys) and not out.exists()
    assert run(*asked, "--allow-other-base") == 0
    told = capsys.readouterr().out
    if command == "inspect":
        assert f"{fine_tune}, though made on another base" in told
    else:
        assert out.exists()
    if command == "merge":  # its base is this model now, so the file itself must tell
        assert read_erasure(out).manifest.settings["other_base_allowed"] is True  # type: ignore[union-attr]
        assert run("inspect", out) == 0 and "made on another base" in capsys.readouterr().out
    if command == "convert":
        assert run("inspect", out, "--model", fine_tune) == 3, "it is still of its own base"


def test_a_search_of_no_predictions_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found"
    assert run("explore", "--model", model, "--concept", "ball", "--calls", 0, "--out", out) == 3
    assert "calls is 0; it must lie between 1 and" in sentence(capsys)


def test_a_preset_tells_what_it_sets_and_what_it_cannot(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["erase", "--model", model, "--concept", "ball", "--out", tmp_path / "x.safetensors", "--harden", -1]

    def said(*arguments: str) -> str:
        assert run(*base, *arguments) == 3  # for the rounds, before any work
        return capsys.readouterr().err.splitlines()[0]

    assert said("--method", "esd", "--preset", "person", "--keep-weight", "2") == (
        "The preset person sets neighbours 4; leaves keep_weight as you gave it."
    )
    without = said("--method", "closed_form", "--preset", "pervasive")
    assert without == "The preset pervasive sets nothing; cannot set layers with closed_form."


def test_bad_models(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        damaged = tmp_path / part.partition("/")[0]
        shutil.copytree(model, damaged)
        content = (damaged / part).read_bytes()
        (damaged / part).write_bytes(content[: len(content) // 2])
    missing = tmp_path / "no_unet"
    shutil.copytree(model, missing)
    shutil.rmtree(missing / "unet")
    (tmp_path / "empty").mkdir()
    for folder, expected in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / ("x" * 300), "does not exist"),
        (tmp_path / "empty", "is not a diffusers model folder"),
        (missing, "incomplete or damaged"),
        (tmp_path / "unet", "incomplete or damaged"),
        (tmp_path / "text_encoder", "incomplete or damaged"),
    ):
        assert run("erase", "--model", folder, "--concept", "ball", "--out", tmp_path / "x.safetensors") == 3
        assert expected in sentence(capsys), folder
    for device, why in (("cuda:99", "this machine has none"), ("foo", "there is no such kind of device")):
        assert run("generate", "--model", model, "--prompt", "a", "--out", tmp_path, "--device", device) == 3
        assert f"{device!r} cannot be used: {why}" in (told := sentence(capsys)) and "choose from auto, cpu" in told


def without_one_tensor(folder: Path, part: str) -> None:
    """Remove one weight: the libraries would fill it with random numbers and only warn."""
    path = next((folder / part).glob("*.safetensors"))
    tensors = load_file(path)
    del tensors[sorted(name for name in tensors if name.endswith("weight"))[0]]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "damage", "says"),
    [
        ("unet/config.json", None, "it lacks unet/config.json"),
        ("scheduler", None, "it lacks scheduler/scheduler_config.json"),
        ("vae/diffusion_pytorch_model.safetensors", None, "it lacks vae/*.safetensors"),
        ("text_encoder/config.json", b"{", "config.json is no JSON"),
        ("unet/diffusion_pytorch_model.safetensors", b"x" * 99, "is not a safetensors file, or it is cut short"),
        ("unet/config.json", "pipe", "a pipe or a device"),
    ],
)
def test_damaged_models_are_told_in_our_words(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, damage: bytes | str | None, says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    assert run("generate", "--model", folder, "--prompt", "a ball", "--out", tmp_path / "p") == 3
    told = sentence(capsys)
    assert says in told and "Error" not in told and told.count("; ") == 1


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "tokenizer"])
def test_models_with_a_missing_piece(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    if part == "tokenizer":
        for file in (folder / part).glob("*"):
            if file.name != "tokenizer_config.json":
                file.unlink()
    else:
        without_one_tensor(folder, part)
    assert run("generate", "--model", folder, "--prompt", "a ball", "--out", tmp_path / "p") == 3
    assert "get a fresh copy" in sentence(capsys)


def test_bad_generate(model: Path, erased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.safetensors").write_bytes(erased.read_bytes()[:300])
    base = ["generate", "--model", model, "--out", tmp_path / "p"]
    for arguments, expected in (
        ([], "nothing to paint"),
        (["--prompt", "word " * 100], "tokens, but only 75 are read"),
        (["--prompt", "a", "--erasure", tmp_path / "none.safetensors"], "No such file"),
        (["--prompt", "a", "--erasure", "x" * 300 + ".safetensors"], "File name too long"),
        (["--prompt", "a \udcff"], "holds bytes that are no UTF-8"),
        (["--prompt", "a", "--erasure", f"{erased}:lots"], "'lots'"),
        (["--prompt", "a", "--erasure", ""], "name of an erasure file is empty; write FILE"),
        (["--prompt", "a", "--erasure", f"{erased}:nan"], "is not a strength"),
        (["--prompt", "a", "--erasure", tmp_path / "broken.safetensors"], "cut short"),
        (["--prompt", "a", "--steps", "0"], "--steps is 0"),
        (["--prompt", "a", "--steps", "5000"], "--steps is 5000; it must lie between 1 and 1000"),
        (["--prompt", "a", "--batch", "0"], "--batch is 0"),
    ):
        assert run(*base, *arguments) == 3, arguments
        assert expected in sentence(capsys)
    assert not (tmp_path / "p").exists()


def test_wrong_base(
    pico_folders: dict[str, Path], erased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", pico_folders["sd2"], "--erasure", erased, "--prompt", "a", "--out", tmp_path / "p"]
    assert run("generate", *arguments) == 3
    assert "another kind of model: sd1, but this one is sd2" in sentence(capsys)
    other = write_pico(tmp_path / "other", "sd1", seed=1)
    assert run("inspect", erased, "--model", other) == 3
    assert "made on another base model" in sentence(capsys)


def test_outputs_that_cannot_be_written(
    model: Path, erased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["erase", "--model", model, "--concept", "ball", "--method", "closed_form", "--out"]
    (tmp_path / "file").write_text("in the way")
    for path, expected in (
        (tmp_path / "file" / "x.safetensors", "cannot be written"),
        (tmp_path / "x.ckpt", "must end in .safetensors"),
        (tmp_path / f"{'x' * 300}.safetensors", "a name of more than 230 bytes"),
        (tmp_path / ("x" * 300) / "x.safetensors", "cannot be written (File name too long)"),
        (erased, "exists already; choose another name or add --overwrite"),
        *([] if os.geteuid() else [(Path("/proc/x.safetensors"), "cannot be written")]),
    ):
        assert run(*base, path) == 5
        assert expected in sentence(capsys)
    assert run(*base, erased, "--overwrite") == 0


def test_an_unfinished_training_is_not_thrown_away(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ball.safetensors"
    (tmp_path / "ball.safetensors.partial").write_bytes(b"work of an hour")
    base = ["erase", "--model", model, "--concept", "ball", "--out", path, *QUICK]
    assert run(*base) == 5
    assert "go on with --resume or start anew with --overwrite" in sentence(capsys)
    assert run(*base, "--resume") == 3
    assert "ball.safetensors.partial" in sentence(capsys)
    assert run(*base, "--overwrite", "--model", tmp_path / "nowhere") == 3
    assert (tmp_path / "ball.safetensors.partial").exists(), "a failed start must not cost the old work"
    assert run(*base, "--overwrite") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["ball.safetensors"]


def test_the_longest_name_that_is_taken_can_be_written(model: Path, tmp_path: Path) -> None:
    """The training's state, the lock and the unfinished file have longer names than the file itself."""
    path = tmp_path / f"{'x' * (LONGEST_NAME - len('.safetensors'))}.safetensors"
    assert run("erase", "--model", model, "--concept", "ball", "--out", path, "--save-every", 0, *QUICK) == 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_help_tells_what_differs_between_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("erase", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "full-size (dense) changes; closed_form, rece: largest rank of the change; 0 sets no limit" in shown
    assert run("bake", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--model MODEL the .safetensors checkpoint to build them in; folders cannot be baked --" in shown


def test_a_wrong_command_line_is_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["generate", "--model", tmp_path, "--prompt", "a"]
    for arguments, says in (
        (base, "the following arguments are required: --out"),
        ([*base, "--out", "p", "--steps", "many"], "invalid int value: 'many'"),
        ([*base, "--out", ""], "argument --out: the path is empty"),
        ([*base, "--out", "p", "--what"], "unrecognized arguments: --what"),
        (["paint"], "invalid choice: 'paint'"),
    ):
        assert run(*arguments) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and told.startswith("concept-erasure") and says in told, told
        assert told.endswith(" --help.\n")


def test_a_model_of_no_finite_numbers_is_blamed_itself(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("attn2.to_q.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    out = ["--out", tmp_path / "x.safetensors"]
    for command in (
        ["erase", "--concept", "ball", *QUICK, *out],
        ["generate", "--prompt", "a", "--steps", 1, "--out", tmp_path / "p"],
    ):
        assert run(*command, "--model", folder) == 3
        assert f"weights are not all finite numbers (unet.{name})" in sentence(capsys)
    assert not any(path.suffix in (".safetensors", ".partial", ".png") for path in tmp_path.rglob("x*"))


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_a_part_of_no_finite_numbers_paints_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    """A broken autoencoder paints black pictures; the embedding of a text encoder is no layer that erasures change."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    path = next((folder / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith(("token_embedding.weight", "decoder.conv_in.weight")))
    save_file({**tensors, name: tensors[name] * float("inf")}, path, {"format": "pt"})
    assert run("generate", "--model", folder, "--prompt", "a", "--steps", 1, "--out", tmp_path / "p") == 3
    assert f"weights are not all finite numbers ({part}." in sentence(capsys)
    assert not list((tmp_path / "p").iterdir())


def test_rounds_are_told_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as progress:
        progress.update(Report("searching", 1, 9))
        say("Round 1: nothing.")
    assert "\rRound 1: nothing.\n" in capsys.readouterr().err.replace(" " * 5, "").replace("\r\r", "\r")


def test_what_could_not_be_saved_stays_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as progress:
        for step in range(3):
            progress.update(Report("training", step, 9))
            progress.update(Report("training", step, 9, note="Not saved: x cannot be written; free some space."))
    told = capsys.readouterr().err
    assert told.count("Not saved: x cannot be written; free some space.\n") == 1 and "space.:" not in told


def test_measurements_are_told_line_by_line(erased: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, manifest = load_file(erased), read_erasure(erased).manifest
    assert manifest is not None
    share = {"share": 0.25, "count": 8, "low": 0.1, "high": 0.5}
    found = {"report_card": {"leak": {"named": share}, "verdict": ["It\nleaks.\x1b[2J"], "odd": {**share, "low": "x"}}}
    save_file(tensors, erased, {"erasure": replace(manifest, measured=found).to_json()})
    assert run("inspect", erased) == 0
    told = capsys.readouterr().out
    assert "  measured\n    report_card:\n      leak:\n        named: 25% of 8 (10% to 50%)\n" in told
    assert "      verdict:\n        - It?leaks.?[2J\n" in told and "{" not in told
    assert told.splitlines()[-1].startswith("  fits")


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert run("erase") == 2
    assert run("dance") == 2
    assert run("--help") == 0
    assert "exit codes:" in capsys.readouterr().out


def test_split_strength() -> None:
    assert split_strength("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert split_strength("a.safetensors:0.5") == (Path("a.safetensors"), 0.5)
    assert split_strength("C:\\x\\a.safetensors") == (Path("C:\\x\\a.safetensors"), 1.0)
    assert split_strength("dir:x/a.safetensors:-1") == (Path("dir:x/a.safetensors"), -1.0)


def test_ctrl_c_leaves_a_state_that_resume_finishes(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "ball.safetensors"
    quick = [
        "--method",
        "esd",
        "--no-replace",
        "--steps",
        "60",
        "--rank",
        "2",
        "--trajectories",
        "4",
        "--trajectory-steps",
        "3",
        "--batch",
        "2",
    ]
    command = [sys.executable, "-m", "erasure_core", "erase", "--model", str(model), "--concept", "ball"]
    command += ["--out", str(path), *quick]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=root)
    assert process.stderr is not None
    seen = b""
    while b"training:" not in seen:
        read = process.stderr.read1()
        assert read, f"ended before training began: {seen.decode()[-500:]}"
        seen += read
    process.send_signal(signal.SIGINT)
    seen += process.stderr.read()
    assert process.wait(60) == 130
    last = seen.decode().strip().splitlines()[-1]
    assert "Stopped at step" in last and "--resume" in last and "Traceback" not in seen.decode()
    assert [p.name for p in tmp_path.iterdir()] == ["ball.safetensors.partial"]
    assert run(*command[3:], "--resume") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["ball.safetensors"]
    whole = tmp_path / "whole.safetensors"
    assert run("erase", "--model", model, "--concept", "ball", "--out", whole, *quick) == 0
    assert load_file(path).keys() == load_file(whole).keys()
    assert all(torch.equal(tensor, load_file(whole)[name]) for name, tensor in load_file(path).items())


def test_no_command_touches_the_model_folder(model: Path, erased: Path, tmp_path: Path) -> None:
    def hashes() -> dict[str, str]:
        files = sorted(p for p in model.rglob("*") if p.is_file())
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    before = hashes()
    assert run("erase", "--model", model, "--concept", "cat", "--out", tmp_path / "cat.safetensors", *QUICK) == 0
    options = ["--erasure", erased, "--prompt", "a cat", "--steps", 2, "--out", tmp_path / "p"]
    assert run("generate", "--model", model, *options) == 0
    assert hashes() == before


def test_files_can_be_read_by_others(erased: Path) -> None:
    """A web UI may run as another user, so files are made with the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    assert erased.stat().st_mode & 0o777 == 0o666 & ~mask


def test_foreign_text_cannot_rewrite_the_terminal(
    erased: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(erased)
    manifest = json.loads(read_erasure(erased).manifest.to_json()) | {"family": "\x1b[31mevil\n"}  # type: ignore[union-attr]
    save_file(tensors, tmp_path / "evil.safetensors", {"erasure": json.dumps(manifest)})
    assert run("inspect", tmp_path / "evil.safetensors", "--model", model) == 3
    assert run("inspect", tmp_path / "evil.safetensors") == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out and "evil" in shown.err and "evil" in shown.out


def test_without_torch_the_command_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['torch'] = None; from erasure_core.__main__ import main; sys.exit(main())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert 'torch is missing; in the folder of this software: pip install ".[standalone]"' in done.stderr
