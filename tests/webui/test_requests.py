"""What users and API clients may send: read completely, or refused with a sentence."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_changes import as_erasure, random_deltas
from safetensors.torch import load_file, save_file

from erasure_core.combining import converted
from erasure_core.erasure_file import read_erasure, write_erasure
from erasure_core.errors import ErasureError, InvalidSettings, OutputError, WrongBase
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.webui import WebuiModel
from erasure_core.methods import METHODS, find_method


@pytest.fixture
def package(host: SimpleNamespace) -> Any:
    """The extension's modules by name."""

    def load(name: str) -> Any:
        return importlib.import_module(f"concept_erasure_webui.{name}")

    return load


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("ball", ("ball", 1.0, 1.0)),
        ("ball:0.5", ("ball", 0.5, 0.5)),
        ("ball:1:0", ("ball", 1.0, 0.0)),
        ("ball.safetensors:te=0:unet=2", ("ball", 2.0, 0.0)),
        ("folder/ball:te=0.25", ("folder/ball", 1.0, 0.25)),
    ],
)
def test_tags(tag: str, wanted: tuple[str, float, float], package: Any) -> None:
    wish = package("wishes").from_tag(tag.split(":"))
    assert (wish.name, wish.unet, wish.text) == wanted
    assert package("wishes").from_text(package("wishes").to_text([wish, wish])) == [wish, wish]


@pytest.mark.parametrize("tag", ["", ":1", "ball:x", "ball:-1", "ball:inf", "ball:5", "ball:1:1:1", "ball:dyn=3"])
def test_tags_that_cannot_be_read(tag: str, package: Any) -> None:
    with pytest.raises(InvalidSettings):
        package("wishes").from_tag(tag.split(":"))


def test_a_prompt_and_a_panel(package: Any) -> None:
    wishes = package("wishes")
    assert [w.name for w in wishes.from_prompt("a <erase:x:1> b <lora:y:1><erase:z>")] == ["x", "z"]
    assert wishes.from_panel(()) == wishes.from_panel((False, "x", 1.0)) == wishes.from_panel((True, None, 1.0)) == []
    assert wishes.from_panel((True, "x", 0.5, "None", 1.0, "y"))[1] == wishes.Wish("y")


@pytest.mark.parametrize("name", list(METHODS))
def test_every_setting_of_every_method_has_a_widget_and_comes_back(
    name: str, package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, method = package("form"), find_method(name)
    labels: list[str] = []

    def widget(*values: Any, **given: Any) -> Any:
        labels.append(given["label"])
        return given.get("value", values[0] if values else None)

    monkeypatch.setattr(form, "gr", SimpleNamespace(Dropdown=widget, Checkbox=widget, Number=widget), raising=False)
    values = form.widgets(method)
    assert len(values) == len(fields(method.settings)) and len(set(labels)) == len(labels)
    assert form.settings_of(method, values) == method.settings()
    start, stop = form.offsets()[name]
    assert stop - start == len(values)


def test_numbers_of_the_form(package: Any) -> None:
    form, method = package("form"), find_method("esd")
    names = [setting.name for setting in fields(method.settings)]
    values = [getattr(method.settings(), name) for name in names]
    assert form.settings_of(method, values, 1 / 3).steps == round(method.settings().steps / 3)

    def with_value(name: str, value: Any) -> list[Any]:
        return [value if other == name else old for other, old in zip(names, values, strict=True)]

    assert form.settings_of(method, with_value("layers", ["self-attention", "cross-attention"])).layers.count("+") == 1
    for name, value, message in (
        ("steps", 1.5, "whole number"),
        ("steps", None, "is empty"),
        ("rank", "many", "not a number"),
        ("learning_rate", 7.0, "between"),
        ("layers", [], "choose from"),
    ):
        with pytest.raises(InvalidSettings, match=message):
            form.settings_of(method, with_value(name, value))


def test_infotext_goes_back_into_the_panel(package: Any) -> None:
    panel = package("panel")
    assert panel.pasted({"Concept erasure": "ball:0.5, words:1"})[:5] == [True, "ball", 0.5, "words", 1.0]
    assert panel.pasted({})[0] is False


@pytest.mark.parametrize(
    ("text", "slots", "tags"),
    [
        ("ball:1:0, words:0.5", ["words"], "<erase:ball:1:0>"),
        ("ball:3, words:1", ["words"], "<erase:ball:3:3>"),
        ("a:1, b:1, c:1, d:1, e:0.5", ["a", "b", "c", "d"], "<erase:e:0.5:0.5>"),
        ("ball:very", [], "<erase:ball:very>"),
        ("b=all:1", [], "<erase:b=all:1>"),
        ("ball:1", ["ball"], ""),
    ],
)
def test_what_the_panel_cannot_hold_becomes_tags(text: str, slots: list[str], tags: str, package: Any) -> None:
    panel, wishes = package("panel"), package("wishes")
    params = {"Prompt": "a cat", "Concept erasure": text}
    if tags:  # where the host does not ask us first, nothing is lost without a word
        with pytest.raises(InvalidSettings, match="names"):
            wishes.from_panel(panel.pasted(params))
    panel.paste_rest("", params)
    assert [wish.name for wish in wishes.from_panel(panel.pasted(params))] == slots
    assert params["Prompt"] == f"a cat{tags}"


def test_names_that_the_infotext_could_not_say(package: Any, library: Path) -> None:
    panel, wishes = package("panel"), package("wishes")
    for name in ("a,b", "a=b"):
        (library / f"{name}.safetensors").write_bytes(b"no")
        assert name in panel.choices() and name not in panel.listed()
        with pytest.raises(InvalidSettings, match="rename it"):
            wishes.from_panel((True, name, 1.0))


def test_whatever_a_file_says_is_escaped(package: Any, library: Path) -> None:
    show, places = package("show"), package("places")
    (library / "a&b.safetensors").write_bytes(b"<script>")
    table = show.library(places.library())
    assert "a&amp;b.safetensors" in table and "<script>" not in table
    assert "ball.safetensors" not in show.library(places.library(), "other")
    assert "is not a" in table and str(library) not in table  # says what is wrong, and not where the folder lies
    assert "&lt;b&gt;" in show.message("<b>") and "<b>" not in show.measured({"<b>": 1}).replace("<b>", "", 1)


def test_the_loss_is_drawn(package: Any) -> None:
    show = package("show")
    assert show.curve([]) == ""
    drawn = show.curve([{"erase": 1.0 / (i + 1), "keep": 0.0} for i in range(1000)])
    assert drawn.count("<polyline") == 2 and len(drawn) < 20_000


def test_a_full_size_change_is_exported_as_a_lora_of_low_rank(
    a1111: SimpleNamespace, source: DiffusersModel, package: Any, library: Path
) -> None:
    """Some hosts' LoRA loaders read no ".diff", or read it and skip what they do not know."""
    deltas = random_deltas(source, "cross-attention-kv", dense=True)
    write_erasure(library / "whole.safetensors", as_erasure(source, deltas), source)
    assert all(key.endswith(".diff") for key in load_file(library / "whole.safetensors"))
    package("shelf").export_lora("whole")
    exported = library.parent / "Lora" / "whole.safetensors"
    assert {key.rpartition(".lora_")[2] for key in load_file(exported) if ".lora_" in key} == {
        "up.weight",
        "down.weight",
    }
    assert not [key for key in load_file(exported) if key.endswith(".diff")]
    found = read_erasure(exported).bind(source)
    for name in deltas:
        torch.testing.assert_close(found[name].change(), deltas[name].change(), rtol=1e-2, atol=1e-3)


def test_the_shelf(a1111: SimpleNamespace, package: Any, library: Path) -> None:
    shelf = package("shelf")
    assert "sphere" in shelf.rename("ball", "sphere")
    assert (library / "sphere.safetensors").exists() and not (library / "ball.safetensors").exists()
    with pytest.raises(ErasureError, match="already"):
        shelf.rename("sphere", "words")
    with pytest.raises(ErasureError, match="Tick the box"):
        shelf.delete("sphere", False)
    a1111.shared.cmd_opts.webui_is_non_local = True
    for forbidden in (
        lambda: shelf.delete("sphere", True),
        lambda: shelf.rename("sphere", "ball"),
        lambda: shelf.save_profile("p", ["sphere"], 1.0),
        lambda: shelf.export_lora("sphere"),
    ):
        with pytest.raises(ErasureError, match="open to others"):
            forbidden()
    a1111.shared.cmd_opts.webui_is_non_local = False
    for name in ("None", " None."):
        with pytest.raises(ErasureError, match="no profile is in force"):
            shelf.save_profile(name, ["sphere"], 1.0)
    assert "studio" in shelf.save_profile("studio", ["sphere"], 1.0)
    for pinned in ("studio", ""):
        a1111.shared.cmd_opts.concept_erasure_profile = pinned
        with pytest.raises(ErasureError, match="pinned"):
            shelf.export_lora("sphere")
    a1111.shared.cmd_opts.concept_erasure_profile = None
    assert "LoRA, the file as it is: <lora:sphere:1>" in shelf.export_lora("sphere")
    assert (library.parent / "Lora" / "sphere.safetensors").read_bytes() == (
        library / "sphere.safetensors"
    ).read_bytes()
    shelf.delete("sphere", True)
    for name in (None, "None", "sphere", "../studio", "/etc/passwd"):
        with pytest.raises(ErasureError):
            shelf.chosen(name)


@torch.no_grad()
def test_exporting_a_dense_erasure_tells_its_error(a1111: SimpleNamespace, package: Any, library: Path) -> None:
    model = WebuiModel(a1111.model)
    dense = converted(model, read_erasure(library / "ball.safetensors"), "dense")
    write_erasure(library / "whole.safetensors", dense, model)
    said = re.search(r"relative error of the conversion (\S+): <lora:whole:1>", package("shelf").export_lora("whole"))
    lora = read_erasure(library.parent / "Lora" / "whole.safetensors").bind(model)
    changes = [(lora[name].change(), dense.deltas[name].change()) for name in dense.deltas]
    error = sum((got - meant).norm() ** 2 for got, meant in changes) ** 0.5
    size = sum(meant.norm() ** 2 for _, meant in changes) ** 0.5
    assert said and 0 < float(error / size) <= 2 * float(said[1]) < 2e-3


def test_which_erasures_fit_the_loaded_checkpoint(a1111: SimpleNamespace, package: Any, library: Path) -> None:
    shelf = package("shelf")
    (library / "bad.safetensors").write_bytes(b"no")
    title = a1111.model.sd_checkpoint_info.title
    assert shelf.check("ball") == f"ball fits {title}."
    assert shelf.check("None") == f"{title}. Fit: ball, words. Do not fit: bad, other."
    with torch.no_grad():
        for weight in a1111.model.model.diffusion_model.parameters():
            weight.mul_(1.5)
    with pytest.raises(WrongBase, match="another base model"):
        shelf.check("ball")
    assert shelf.check(None) == f"{title}. Fit: words. Do not fit: bad, ball, other."  # "words" is of text alone


def test_what_belongs_to_a_file_goes_with_it(package: Any, library: Path) -> None:
    shelf = package("shelf")
    (library / "ball.history.json").write_text("{}")
    shelf.rename("ball", "sphere")
    assert not (library / "ball.history.json").exists() and (library / "sphere.history.json").exists()
    shelf.delete("sphere", True)
    assert not (library / "sphere.history.json").exists()


@pytest.mark.parametrize("pinned", [False, True])
def test_a_file_that_the_profile_in_force_needs_stays(
    package: Any, host: SimpleNamespace, library: Path, pinned: bool
) -> None:
    shelf = package("shelf")
    shelf.save_profile("studio", ["ball"], 1.0)
    (host.shared.cmd_opts if pinned else host.shared.opts).concept_erasure_profile = "studio"
    for work in (lambda: shelf.rename("ball", "sphere"), lambda: shelf.delete("ball", True)):
        with pytest.raises(InvalidSettings, match="'studio' is in force and names ball"):
            work()
    assert "is now star" in shelf.rename("words", "star")


def test_importing(a1111: SimpleNamespace, package: Any, library: Path, erasure_files: dict[str, bytes]) -> None:
    shelf, upload = package("shelf"), library.parent / "upload"
    upload.mkdir()
    for name, content in {**erasure_files, "bad": b"no"}.items():
        (upload / f"{name}.safetensors").write_bytes(content)
    (upload / "code.pt").write_bytes(b"no")
    assert "ball-2 was imported" in shelf.import_file(upload / "ball.safetensors", "")
    for name in ("other.safetensors", "bad.safetensors", "code.pt", "missing.safetensors"):
        with pytest.raises(ErasureError):
            shelf.import_file(upload / name, "ball")


def test_importing_tells_what_was_not_kept(a1111: SimpleNamespace, package: Any, library: Path) -> None:
    shelf, upload = package("shelf"), library.parent / "esd.safetensors"
    unet = {name: tensor.detach().clone() for name, tensor in shelf.loaded_model().unet.named_parameters()}
    changed = {"out.2.weight": unet["out.2.weight"] * 1.1, "out.2.bias": unet["out.2.bias"] + 0.01}
    save_file(changed | {"strange.weight": torch.zeros(1)}, upload)
    said = shelf.import_file(upload, "ball")
    assert "Not kept, as erasure files hold weights of layers only: 1 norms" in said and "Not read: 1 tensors" in said


def test_passwords_of_the_host_cover_the_routes(host: SimpleNamespace, package: Any, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    routes = package("routes")
    assert routes.passwords() == {}
    host.shared.cmd_opts.gradio_auth = "a:1,b:2:3"
    (tmp_path / "more").write_text("c:4\n")
    host.shared.cmd_opts.gradio_auth_path = str(tmp_path / "more")
    assert routes.passwords() == {"a": "1", "b": "2:3", "c": "4"}
    host.shared.cmd_opts.api_auth = "me:secret"
    assert routes.passwords() == {"me": "secret"}
    ask = SimpleNamespace
    routes.check(ask(username="me", password="secret"))
    for wrong in (
        None,
        ask(username="me", password="x"),
        ask(username="you", password="secret"),
        ask(username="", password=""),
    ):
        with pytest.raises(routes.HTTPException):
            routes.check(wrong)


def test_settings_cannot_be_changed_from_the_hosts_api(package: Any) -> None:
    settings = package("settings")
    settings.refuse_api()
    calls: dict[str, Any] = {"__name__": "modules.api.api", "change": settings.refuse_api}
    exec("def set_config():\n    change()", calls)  # noqa: S102  # a frame of that module is what is looked for
    with pytest.raises(ErasureError, match="through the API"):
        calls["set_config"]()


def test_nothing_is_imported_where_it_could_undo_a_profile(
    a1111: SimpleNamespace, package: Any, library: Path, erasure_files: dict[str, bytes]
) -> None:
    shelf, upload = package("shelf"), library.parent / "ball.safetensors"
    upload.write_bytes(erasure_files["ball"])
    a1111.shared.cmd_opts.webui_is_non_local = True
    with pytest.raises(ErasureError, match="Importing is switched off, because this web UI is open"):
        shelf.import_file(upload, "")
    a1111.shared.cmd_opts.webui_is_non_local = False
    for pinned in ("studio", ""):
        a1111.shared.cmd_opts.concept_erasure_profile = pinned
        with pytest.raises(ErasureError, match="Importing is switched off while a safety profile is pinned"):
            shelf.import_file(upload, "")


def test_a_folder_that_cannot_be_written_is_told(
    a1111: SimpleNamespace, package: Any, library: Path, erasure_files: dict[str, bytes], monkeypatch: Any
) -> None:
    shelf, upload = package("shelf"), library.parent / "ball.safetensors"
    upload.write_bytes(erasure_files["ball"])
    before = sorted(library.iterdir())

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OutputError, match="No space left"):
            shelf.import_file(upload, "")
        with pytest.raises(OutputError, match="No space left"):
            shelf.export_lora("ball")
    assert sorted(library.iterdir()) == before and not any((library.parent / "Lora").iterdir())
    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    for work in (lambda: shelf.rename("ball", "sphere"), lambda: shelf.delete("ball", True)):
        with pytest.raises(OutputError, match="cannot be changed"):
            work()


def test_other_bases_fit_where_the_setting_allows_them(a1111: SimpleNamespace, package: Any, library: Path) -> None:
    shelf = package("shelf")
    with torch.no_grad():
        for weight in a1111.model.model.diffusion_model.parameters():
            weight.mul_(1.5)
    with pytest.raises(WrongBase):
        shelf.check("ball")
    a1111.shared.opts.concept_erasure_other_base = True
    assert "ball fits" in shelf.check("ball")
