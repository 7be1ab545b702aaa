"""The nodes on a fake host: schemas of the oldest host, files, profiles that fail closed, graphs that are rewritten."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_comfy
import pytest
import torch
from conftest import PACK, ROOT
from fake_comfy import Interrupted, Switches
from pack_nodes import SMALL, WIDGETS, Nodes, concept, instant
from safetensors.torch import save_file

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.manifest import Manifest
from erasure_core.safe_files import read_tensors, write_tensors


def test_there_is_a_node_for_every_method(nodes: Nodes) -> None:
    methods = importlib.import_module(f"{PACK}.erasure_core.methods").METHODS
    assert {f"ConceptErasureErase_{name}" for name in methods} <= set(nodes.all)
    for name, method in methods.items():
        schema = nodes.all[f"ConceptErasureErase_{name}"].define_schema()
        widgets = {each.id: each for each in schema.inputs}
        for setting in method.settings.__dataclass_fields__.values():
            assert widgets[setting.name].tooltip.endswith("."), setting.name
        assert method.status in schema.description


def test_widgets_give_the_settings_their_defaults(nodes: Nodes) -> None:
    widgets = importlib.import_module(f"{PACK}.nodes.widgets")
    for method in importlib.import_module(f"{PACK}.erasure_core.methods").METHODS.values():
        values = {each.id: each.default for each in widgets.inputs_of(method.settings)}
        assert widgets.settings_from(method.settings, values) == method.settings()


def test_what_may_be_off_says_so(nodes: Nodes) -> None:
    widgets = importlib.import_module(f"{PACK}.nodes.widgets")
    settings = importlib.import_module(f"{PACK}.erasure_core.methods").METHODS["esd"].settings
    (shown,) = (each for each in widgets.inputs_of(settings) if each.id == "stop_below")
    assert (shown.io_type, shown.default) == ("STRING", "off") and "or off" in shown.tooltip
    chosen = {text: widgets.settings_from(settings, {"stop_below": text}).stop_below for text in ("off", " ", "0.1")}
    assert chosen == {"off": None, " ": None, "0.1": 0.1}
    for wrong in ("never", "2", "nan"):
        with pytest.raises(nodes.core.InvalidSettings, match="stop_below"):
            widgets.settings_from(settings, {"stop_below": wrong})


def test_an_erase_node_shows_few_widgets_and_folds_the_rest(nodes: Nodes) -> None:
    methods = importlib.import_module(f"{PACK}.erasure_core.methods").METHODS
    basic: dict[str, set[bool]] = {}
    for name, method in methods.items():
        widgets = [w for w in nodes.all[f"ConceptErasureErase_{name}"].define_schema().inputs if w.io_type in WIDGETS]
        shown = [each.id for each in widgets if not each.extra_dict.get("advanced")]
        assert len(shown) <= 14 and {"preset", "seed", "keep_weight", "harden"} <= set(shown), name
        for setting in method.settings.__dataclass_fields__.values():
            basic.setdefault(setting.name, set()).add(setting.metadata["basic"])
            assert (setting.name in shown) == setting.metadata["basic"]
    assert not [name for name, said in basic.items() if len(said) > 1], "basic in one method and rare in another"


def test_what_only_the_server_puts_into_graphs_is_hidden_in_the_way_of_the_host(nodes: Nodes) -> None:
    schemas = {node_id: node.define_schema() for node_id, node in nodes.all.items()}
    hidden = {node_id for node_id, schema in schemas.items() if getattr(schema, "is_deprecated", False)}
    assert hidden == {"ConceptErasureRefused", "ConceptErasureServerProfile"}
    newer = nodes.refusal.hidden(SimpleNamespace(is_dev_only=False, is_deprecated=False))
    assert newer.is_dev_only and not newer.is_deprecated


def test_seeds_do_not_change_by_themselves(nodes: Nodes) -> None:
    """The front end gives every INT called seed a control that changes it after each run, unless it is told not to."""
    for node in nodes.all.values():
        for each in node.define_schema().inputs:
            assert each.id != "seed" or each.control_after_generate is False


def test_erasing_writes_a_file_and_finds_it_again(nodes: Nodes, graph: dict[str, Any], fake_host: Path) -> None:
    inputs = {**graph, "concept": concept(nodes, keep="a red box"), **SMALL}
    first, again = nodes.run("Erase_esd", **inputs), nodes.run("Erase_esd", **inputs)
    model, clip, erasure, lora, loss, preview = first.args
    files = list((fake_host / "erasures").glob("*.safetensors"))
    assert len(files) == 1 and [i.stored.path for i in erasure] == files
    assert (first.ui["erasure"][0]["reused"], again.ui["erasure"][0]["reused"]) == (False, True)
    assert len(loss["loss"]) == 3 and again.args[4] == loss and all(key.startswith("lora_unet") for key in lora)
    assert preview.shape == (4, 64, 64, 3) and 0 <= preview.min() <= preview.max() <= 1
    assert model.patches and not graph["model"].patches and not clip.patcher.patches
    assert not torch.is_inference_mode_enabled() and fake_comfy.ProgressBar.shown[-1][0] > 0


def test_what_an_erase_node_cannot_put_out_is_told_where_it_is_wanted(nodes: Nodes, graph: dict[str, Any]) -> None:
    """The stock plot fails without two different values, and a black picture would look like a result."""
    both = {"model": graph["model"], "clip": graph["clip"], "concept": concept(nodes)}
    *_, loss, preview = nodes.run("Erase_leco", **both, **{**SMALL, "steps": 1}).args
    assert "no loss to plot" in loss.message and "without a VAE" in preview.message
    assert "no loss to plot" in instant(nodes, graph).args[4].message


def test_every_input_says_what_it_is_for(nodes: Nodes) -> None:
    silent = [
        f"{name}.{each.id}"
        for name, node in nodes.all.items()
        for each in node.define_schema().inputs
        if not (each.tooltip or "").endswith(".")
    ]
    assert not silent


def test_the_words_that_are_shown_as_an_example_are_recognised_as_a_name(nodes: Nodes) -> None:
    """A name begins with capital letters; without them it would be taken for a thing."""
    shown = {each.id: each.placeholder for each in nodes.all["ConceptErasureConcept"].define_schema().inputs[:3:2]}
    caption = next(x.placeholder for x in nodes.all["ConceptErasurePurify"].define_schema().inputs if x.id == "caption")
    assert shown["words"].startswith("Vincent van Gogh") and "Claude Monet" in shown["keep"]
    assert "Vincent van Gogh" in caption


def test_each_strength_says_what_it_acts_on(nodes: Nodes) -> None:
    inputs = {each.id: each.tooltip for each in nodes.all["ConceptErasureApply"].define_schema().inputs}
    assert (
        "follow strength_text alone" in inputs["strength"] and "text-encoder has no others" in inputs["strength_text"]
    )
    outputs = {each.id: each.tooltip for each in nodes.all["ConceptErasureErase_esd"].define_schema().outputs}
    assert "Load LoRA Model takes the network's part only" in outputs["lora"]


def test_interrupting_ends_as_the_host_wants_and_goes_on_later(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {**graph, "concept": concept(nodes), **SMALL, "steps": 4}
    original = fake_comfy.ProgressBar.update_absolute

    def stop_in_training(bar: Any, value: int, total: int | None = None, preview: Any = None) -> None:
        Switches.interrupt = total == 4 and value == 2
        original(bar, value, total, preview)

    monkeypatch.setattr(fake_comfy.ProgressBar, "update_absolute", stop_in_training)
    weights = {key: w.clone() for key, w in graph["model"].model.state_dict().items()}
    with pytest.raises(Interrupted):
        nodes.run("Erase_esd", **inputs)
    assert all(torch.equal(w, weights[key]) for key, w in graph["model"].model.state_dict().items())
    assert [p.name for p in (fake_host / "erasures").iterdir() if p.name.endswith(".partial")]
    monkeypatch.setattr(fake_comfy.ProgressBar, "update_absolute", original)
    resumed = nodes.run("Erase_esd", **inputs)
    assert len(resumed.args[4]["loss"]) == 4
    assert not [p for p in (fake_host / "erasures").iterdir() if p.name.endswith(".partial")]


def test_explicit_concepts_are_not_shown(nodes: Nodes, graph: dict[str, Any]) -> None:
    shown = nodes.run("Erase_closed_form", **graph, concept=concept(nodes, explicit=True), resolution=64)
    assert shown.args[5].shape[0] == 2


@pytest.mark.parametrize(
    "said",
    [{"words": "naked child"}, {"words": "ball\nnudity"}, {"words": "child", "alternative": "nude"}, {"words": "gore"}],
    ids=lambda said: said["words"].replace("\n", "+"),
)
def test_what_words_say_is_hidden_whatever_the_switch_says(
    nodes: Nodes, graph: dict[str, Any], said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a VAE connected, no picture of it is painted: not live, not before and not after."""
    painted: list[str] = []
    original = nodes.progress.sample

    def watched(model: Any, prompts: list[str], *rest: Any, **named: Any) -> Any:
        painted.extend(prompts)
        return original(model, prompts, *rest, **named)

    monkeypatch.setattr(nodes.progress, "sample", watched)
    shown = nodes.run("Erase_leco", **graph, concept=concept(nodes, **said), **SMALL, preview_every=2)
    assert set(painted) == {"a photo"} and len(painted) == 3
    assert shown.args[5].shape[0] == 2


def test_an_explicit_kept_prompt_is_not_shown(nodes: Nodes) -> None:
    request = concept(nodes, keep="a nude woman\na red box")
    assert nodes.progress.preview_prompts(request) == ["a ball", "a red box"]


def test_load_and_apply_do_what_erase_did(nodes: Nodes, graph: dict[str, Any]) -> None:
    made = instant(nodes, graph)
    name = made.args[2][0].stored.path.name
    loaded_erasure = nodes.run("Load", file=name, erases="").args[0]
    applied = nodes.run("Apply", model=graph["model"], clip=graph["clip"], erasure=loaded_erasure).args[0]
    ours, theirs = (
        [w for patches in model.patches.values() for w in patches[0][1].weights[:2]]
        for model in (applied, made.args[0])
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "loras/../../x.safetensors", "missing.safetensors"]
)
def test_files_outside_the_folders_are_not_loaded(nodes: Nodes, file: str) -> None:
    node = nodes.all["ConceptErasureLoad"]
    assert "There is no file" in node.validate_inputs(file=file)
    with pytest.raises(nodes.core.InvalidFile):
        nodes.run("Load", file=file, erases="")


def test_a_linked_file_name_is_looked_up_when_the_graph_runs(nodes: Nodes) -> None:
    """The host validates and fingerprints before it runs anything, and gives ``None`` for what is linked."""
    node = nodes.all["ConceptErasureLoad"]
    assert node.validate_inputs(file=None) is True
    first = node.fingerprint_inputs(file=None, erases="")
    assert first != first, "as the host has it: equal to nothing, so that the node runs again"


def test_a_folder_called_loras_below_the_erasures_is_read(nodes: Nodes, graph: dict[str, Any], fake_host: Path) -> None:
    made = instant(nodes, graph).args[2][0].stored.path
    for folder in (fake_host / "erasures" / "loras", fake_host / "loras"):
        folder.mkdir()
    (fake_host / "erasures" / "loras" / "a.safetensors").write_bytes(made.read_bytes())
    (fake_host / "loras" / "a.safetensors").write_bytes(b"another file of that name")
    (file,) = (each for each in nodes.all["ConceptErasureLoad"].define_schema().inputs if each.id == "file")
    assert file.options.count("loras/a.safetensors") == 1
    loaded = nodes.run("Load", file="loras/a.safetensors", erases="").args[0]
    assert loaded[0].stored.path == fake_host / "erasures" / "loras" / "a.safetensors"


KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
QUERY = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def published(folder: Path, model: DiffusersModel, **more: torch.Tensor) -> str:
    """Whole weights as ESD publishes them: half precision, the change of rank 2 in one layer."""
    generator = torch.Generator().manual_seed(0)
    weight = model.layers()[f"unet.{KEY}"].weight.detach().float()
    low = torch.randn(len(weight), 2, generator=generator) @ torch.randn(2, weight.shape[1], generator=generator)
    folder.mkdir(exist_ok=True)
    changed = (weight + 0.1 * low * weight.norm() / low.norm()).half()
    save_file({f"{KEY}.weight": changed, **more}, folder / "esd.safetensors")
    return "esd.safetensors"


def test_rounding_of_a_foreign_file_is_no_rank(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path, pico_models: dict[str, DiffusersModel]
) -> None:
    file = published(fake_host / "erasures", pico_models["sd1"])
    loaded = nodes.run("Load", file=file, erases="ball", model=graph["model"]).args[0]
    dense = nodes.run("Convert", erasure=loaded, model=graph["model"], form="dense").args[0]
    for erasure in (loaded, dense):
        small, error = nodes.run("Convert", erasure=erasure, model=graph["model"], form="low-rank").args
        assert [delta.rank for delta in small[0].stored.changes.values()] == [2] and error < 0.02


def test_what_foreign_weights_lose_is_told(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path, pico_models: dict[str, DiffusersModel]
) -> None:
    bias = pico_models["sd1"].unet.state_dict()["conv_in.bias"] + 1
    more = {"text_encoder.some.weight": torch.zeros(1), "conv_in.bias": bias}
    file = published(fake_host / "erasures", pico_models["sd1"], **more)
    loaded = nodes.run("Load", file=file, erases="ball", model=graph["model"])
    text = nodes.run("Inspect", erasure=loaded.args[0]).args[0]
    for said in (loaded.ui["erasure"][0]["missing"], text):
        assert "Not read: 1 tensors that this model does not have" in said
        assert "Not kept, as erasure files hold weights of layers only: 1 norms, biases and embeddings" in said
    assert "settings: file esd.safetensors\n" in text
    made = nodes.run("Inspect", erasure=text_erasure(nodes, graph)).args[0]
    assert "rank 4" in made and "steps 3" in made and "missing" not in made


def test_inspect_lists_what_block_weights_can_name(nodes: Nodes, graph: dict[str, Any]) -> None:
    links = {"model": graph["model"], "clip": graph["clip"]}
    for erasure in (instant(nodes, graph).args[2], text_erasure(nodes, graph)):
        assert "connect MODEL" in nodes.run("Inspect", erasure=erasure).args[0]
        text = nodes.run("Inspect", erasure=erasure, **links).args[0]
        blocks = re.findall(r"^(\S+) \((\d+) layers\)$", text.partition("\nblocks:\n")[2], re.MULTILINE)
        assert len(blocks) > 1 and sum(int(count) for _, count in blocks) == len(erasure[0].stored.changes)
        for block, _ in blocks:  # a name that fits nothing stops the graph
            nodes.run("Apply", **links, erasure=erasure, block_weights=f"{block} = 0")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_foreign_lora_of_the_text_encoder_asks_for_clip(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path, pico_models: dict[str, DiffusersModel], suffix: str
) -> None:
    shape = pico_models["sd1"].layers()[QUERY].weight.shape
    down, up = torch.ones(1, shape[1]), torch.ones(shape[0], 1)
    file, folder = f"peft{suffix}", fake_host / "erasures"
    folder.mkdir()
    if suffix == ".pt":  # kohya's names in a pickle
        module = f"lora_te_{QUERY.partition('.')[2].replace('.', '_')}"
        torch.save({f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}, folder / file)
    else:
        save_file({f"{QUERY}.lora_A.weight": down, f"{QUERY}.lora_B.weight": up}, folder / file)
    with pytest.raises(nodes.core.ModelError, match="connect CLIP as well"):
        nodes.run("Load", file=file, erases="ball", model=graph["model"])
    both = {"model": graph["model"], "clip": graph["clip"]}
    loaded = nodes.run("Load", file=file, erases="ball", **both).args[0]
    assert len(nodes.run("Apply", **both, erasure=loaded).args[1].patcher.patches) == 1


def test_a_foreign_text_encoder_is_read_beside_its_clip(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path, pico_models: dict[str, DiffusersModel]
) -> None:
    (fake_host / "erasures").mkdir()
    state = pico_models["sd1"].text_encoders[0].state_dict()
    whole = {f"text_model.{name.removeprefix('text_model.')}": tensor.clone() for name, tensor in state.items()}
    for changed in (f"{QUERY.partition('.')[2]}.weight", "text_model.final_layer_norm.bias"):
        whole[changed] += 0.01
    save_file(whole, fake_host / "erasures" / "text.safetensors")
    with pytest.raises(nodes.core.ModelError, match="connect CLIP as well"):
        nodes.run("Load", file="text.safetensors", erases="ball", model=graph["model"])
    both = {"model": graph["model"], "clip": graph["clip"]}
    loaded = nodes.run("Load", file="text.safetensors", erases="ball", **both)
    assert "Not kept" in loaded.ui["erasure"][0]["missing"] and "1 norms" in loaded.ui["erasure"][0]["missing"]
    assert len(nodes.run("Apply", **both, erasure=loaded.args[0]).args[1].patcher.patches) == 1


def text_erasure(nodes: Nodes, graph: dict[str, Any]) -> Any:
    """An erasure on a link that changes the text encoder alone."""
    inputs = {"model": graph["model"], "clip": graph["clip"], "concept": concept(nodes), **SMALL}
    return nodes.run("Erase_esd", **inputs, layers="text-encoder").args[2]


def test_a_block_weight_has_to_fit_one_erasure_of_a_stack(nodes: Nodes, graph: dict[str, Any]) -> None:
    both = {"model": graph["model"], "clip": graph["clip"]}
    stack = nodes.run("Stack", first=instant(nodes, graph).args[2], second=text_erasure(nodes, graph)).args[0]
    model, clip = nodes.run("Apply", **both, erasure=stack, block_weights="unet.* = 0.5\ntext_encoder.* = 0.25").args
    assert {held[0] for patches in model.patches.values() for held in patches} == {0.5}
    assert {held[0] for patches in clip.patcher.patches.values() for held in patches} == {0.25}
    with pytest.raises(nodes.core.InvalidSettings, match="No changed layer fits"):
        nodes.run("Apply", **both, erasure=stack, block_weights="unet.* = 0.5\nnothing.* = 0.5")


@pytest.mark.parametrize("where", [("Apply", "strength"), ("Apply", "strength_text"), ("Stack", "strength_first")])
@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(
    nodes: Nodes, graph: dict[str, Any], where: tuple[str, str], strength: float
) -> None:
    """JSON has no such number, but hosts read one, and it passes their limits."""
    erasure = instant(nodes, graph).args[2]
    node, name = where
    links = {"model": graph["model"], "clip": graph["clip"], "erasure": erasure}
    inputs = links if node == "Apply" else {"first": erasure, "second": erasure}
    with pytest.raises(nodes.core.InvalidSettings, match="is no number"):
        nodes.run(node, **{**inputs, name: strength})


def test_a_checkpoint_that_would_lack_an_erasure_is_not_baked(
    nodes: Nodes, graph: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's saving knows what is on the weights, and nothing of what is done while it samples."""
    saved: list[Any] = []
    merging = ModuleType("comfy_extras.nodes_model_merging")
    merging.save_checkpoint = lambda model, **others: saved.append(model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_extras", ModuleType("comfy_extras"))
    monkeypatch.setitem(sys.modules, merging.__name__, merging)
    erasure, other = instant(nodes, graph).args[2], instant(nodes, graph, "cat").args[2]
    inputs = {"clip": graph["clip"], "vae": graph["vae"], "erasure": other}
    nodes.run("Bake", model=graph["model"], **inputs)
    assert saved.pop().patches
    limited = nodes.run("Apply", model=graph["model"], clip=graph["clip"], erasure=erasure, start=0.2).args[0]
    with pytest.raises(nodes.core.ModelError, match="part of the sampling"):
        nodes.run("Bake", model=limited, **inputs)
    bypassing = graph["model"].clone()
    bypassing.injections = {"lora": [object()]}
    with pytest.raises(nodes.core.ModelError, match="bypass mode"):
        nodes.run("Bake", model=bypassing, **inputs)
    assert not saved


@pytest.mark.parametrize("kind", ["Apply", "Convert", "Save"])
def test_changes_of_the_text_encoder_ask_for_clip(nodes: Nodes, graph: dict[str, Any], kind: str) -> None:
    """Without it the layers are missing, and the model would be blamed."""
    erasure = nodes.run("Stack", first=text_erasure(nodes, graph), second=instant(nodes, graph).args[2]).args[0]
    with pytest.raises(nodes.core.ModelError, match="connect CLIP as well"):
        nodes.run(kind, model=graph["model"], erasure=erasure)


def test_a_file_for_another_base_stops_the_graph(
    nodes: Nodes, graph: dict[str, Any], pico_folders: dict[str, Path], tmp_path: Path
) -> None:
    erasure = instant(nodes, graph).args[2]
    layer = graph["model"].model.diffusion_model.inner.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    with torch.inference_mode():
        layer._parameters["weight"] = torch.nn.Parameter(layer._parameters["weight"] * -1)
    with pytest.raises(nodes.core.WrongBase, match="another base model"):
        nodes.run("Apply", model=graph["model"], clip=graph["clip"], erasure=erasure)
    allowed = nodes.run("Apply", model=graph["model"], clip=graph["clip"], erasure=erasure, allow_other_base=True)
    assert allowed.args[0].patches


def test_stacks_add_up_and_are_saved_as_one_file(nodes: Nodes, graph: dict[str, Any]) -> None:
    one, two = (instant(nodes, graph, word).args[2] for word in ("ball", "cat"))
    stack = nodes.run("Stack", first=one, second=two, strength_second=0.5).args[0]
    applied = nodes.run("Apply", model=graph["model"], clip=graph["clip"], erasure=stack).args[0]
    assert all([p[0] for p in patches] == [1.0, 0.5] for patches in applied.patches.values())
    with pytest.raises(nodes.core.ModelError, match="connect the MODEL"):
        nodes.run("Save", erasure=stack, name="both")
    saved = nodes.run("Save", erasure=stack, name="../both", model=graph["model"], clip=graph["clip"])
    assert Path(saved.args[1]).name == "both.safetensors" and saved.ui["erasure"][0]["words"] == ["ball", "cat"]
    assert Path(nodes.run("Save", erasure=one, name="both").args[1]).name == "both-2.safetensors"
    assert "erased: ball, cat" in nodes.run("Inspect", erasure=saved.args[0]).args[0]


def test_conversion_keeps_the_change(nodes: Nodes, graph: dict[str, Any]) -> None:
    erasure = instant(nodes, graph).args[2]
    dense, error = nodes.run("Convert", erasure=erasure, model=graph["model"], form="dense").args
    assert error == 0
    back, error = nodes.run("Convert", erasure=dense, model=graph["model"], form="low-rank").args
    assert error < 1e-5
    for name, delta in erasure[0].stored.changes.items():
        assert torch.allclose(back[0].stored.changes[name].change(), delta.change(), atol=1e-5)


def test_a_conversion_that_loses_much_loses_the_figures(nodes: Nodes, graph: dict[str, Any], tmp_path: Path) -> None:
    item = instant(nodes, graph).args[2][0]
    manifest = replace(item.stored.manifest, measured={"leak": 0.1})
    measured = (replace(item, stored=replace(item.stored, manifest=manifest)),)
    exact = nodes.run("Convert", erasure=measured, model=graph["model"], form="dense").args[0]
    assert exact[0].stored.manifest.measured == {"leak": 0.1}
    lossy, error = nodes.run("Convert", erasure=measured, model=graph["model"], form="low-rank", rank=1).args
    assert error > 1e-3 and lossy[0].stored.manifest.measured == {}
    both = nodes.run("Stack", first=lossy, second=measured).args[0]
    saved = nodes.run("Save", erasure=both, name="both", model=graph["model"], clip=graph["clip"]).args[0]
    assert saved[0].stored.manifest.settings["parts"][0]["conversion_error"] == pytest.approx(error)


def test_a_converted_erasure_is_saved_with_its_own_description(nodes: Nodes, graph: dict[str, Any]) -> None:
    """As the command line's convert writes it: method, steps, settings and figures stay."""
    item = instant(nodes, graph).args[2][0]
    manifest = replace(item.stored.manifest, measured={"leak": 0.1}, steps_done=7)
    measured = (replace(item, stored=replace(item.stored, manifest=manifest)),)
    exact = nodes.run("Convert", erasure=measured, model=graph["model"], form="dense").args[0]
    links = {"name": "dense", "model": graph["model"], "clip": graph["clip"]}
    (saved,) = nodes.run("Save", erasure=exact, **links).args[0]
    converted = exact[0].stored.manifest
    stored_as = {"dtype": "float32", "storage_error": saved.stored.manifest.storage_error}
    assert saved.stored.manifest == replace(converted, **stored_as)
    assert (saved.stored.manifest.method, saved.stored.manifest.steps_done) == (manifest.method, 7)
    (weaker,) = nodes.run("Save", erasure=(exact[0].times(0.5, 0.5),), **links).args[0]
    assert weaker.stored.manifest.method == "merge"


def test_a_profile_is_applied_once_however_often_it_is_asked_for(
    nodes: Nodes, graph: dict[str, Any], profile: str
) -> None:
    once = nodes.run("SafetyProfile", model=graph["model"], clip=graph["clip"], profile=profile).args
    digest = nodes.profiles.load_profile(profile).digest()
    twice = nodes.run("ServerProfile", model=once[0], clip=once[1], profile=profile, digest=digest).args
    assert [len(p) for p in twice[0].patches.values()] == [len(p) for p in once[0].patches.values()]
    assert {len(p) for p in once[0].patches.values()} == {2}


def test_a_profile_that_is_not_there_is_refused_before_anything_runs(nodes: Nodes, profile: str) -> None:
    """The host then runs the other branches, such as one that saves the profile, whatever their order."""
    node = nodes.all["ConceptErasureSafetyProfile"]
    assert node.validate_inputs(profile=profile) is True and node.validate_inputs(profile=None) is True
    assert "There is no safety profile 'other'" in node.validate_inputs(profile="other")
    for strange in (5, True, [], {}):
        assert "is not the name of a safety profile" in node.validate_inputs(profile=strange)


def test_a_mark_without_its_patches_is_worth_nothing(nodes: Nodes, graph: dict[str, Any], profile: str) -> None:
    """A node may hand on a model without the patches but with the attachments."""
    safe = nodes.run("SafetyProfile", model=graph["model"], clip=graph["clip"], profile=profile).args[0]
    stripped = safe.clone()
    stripped.patches = {}
    again = nodes.run("SafetyProfile", model=stripped, clip=graph["clip"], profile=profile).args[0]
    assert {len(p) for p in again.patches.values()} == {2}


@pytest.mark.parametrize("how", ["scaled", "set"])
def test_patches_that_a_merge_has_undone_are_worth_nothing(
    nodes: Nodes, graph: dict[str, Any], profile: str, how: str
) -> None:
    """Merging models scales what came before, or sets the weights, and keeps patches and attachments."""
    safe = nodes.run("SafetyProfile", model=graph["model"], clip=graph["clip"], profile=profile).args[0]
    merged = safe.clone()
    for key, patches in merged.patches.items():
        weight = merged.model.state_dict()[key]
        scale, value = (0.0, ("diff", (weight,))) if how == "scaled" else (1.0, ("set", (weight,)))
        merged.patches[key] = [*patches, (1.0, value, scale, None, None)]
    again = nodes.run("SafetyProfile", model=merged, clip=graph["clip"], profile=profile).args[0]
    assert {len(p) for p in again.patches.values()} == {5}


def test_a_profile_is_found_by_whatever_name_its_file_has(
    nodes: Nodes, graph: dict[str, Any], profile: str, fake_host: Path
) -> None:
    """A second download is called "studio (1)"."""
    folder = fake_host / "erasures" / "profiles"
    (folder / "studio.profile.json").rename(folder / "My studio (1).profile.json")
    node = nodes.all["ConceptErasureSafetyProfile"]
    (listed,) = next(each.options for each in node.define_schema().inputs if each.id == "profile")
    assert listed == "My studio (1)" and node.validate_inputs(profile=listed) is True
    assert "missing" not in node.fingerprint_inputs(profile=listed)
    assert nodes.run("SafetyProfile", model=graph["model"], clip=graph["clip"], profile=listed).args[0].patches


def test_a_linked_name_that_is_none_is_told(nodes: Nodes, graph: dict[str, Any]) -> None:
    with pytest.raises(nodes.profiles.ProfileFailed, match="None is not the name"):
        nodes.run("SaveSafetyProfile", erasure=instant(nodes, graph).args[2], name=None)


def test_a_profile_that_was_removed_is_saved_again(nodes: Nodes, profile: str, fake_host: Path) -> None:
    node = nodes.all["ConceptErasureSaveSafetyProfile"]
    there = node.fingerprint_inputs(name=profile, erasure=None)
    assert there == node.fingerprint_inputs(name=profile, erasure=None)
    (fake_host / "erasures" / "profiles" / "studio.profile.json").unlink()
    assert node.fingerprint_inputs(name=profile, erasure=None) != there


def test_a_file_that_was_removed_meanwhile_is_told(nodes: Nodes, graph: dict[str, Any]) -> None:
    """The host's cache still holds what was read from it."""
    erasure = instant(nodes, graph).args[2]
    erasure[0].stored.path.unlink()
    with pytest.raises(nodes.profiles.ErasureError, match="cannot be read"):
        nodes.run("Save", erasure=erasure, name="copy")


def test_figures_in_a_file_do_not_make_its_graph_run_again(nodes: Nodes, graph: dict[str, Any]) -> None:
    """A Report Card that writes into the file would else measure at every queue."""
    path = instant(nodes, graph).args[2][0].stored.path
    load = nodes.all["ConceptErasureLoad"]
    before = load.fingerprint_inputs(file=path.name)
    tensors, metadata = read_tensors(path)
    manifest = Manifest.from_json(metadata["erasure"])
    measured = replace(manifest, measured={"leak": 0.1}).to_json()
    write_tensors(path, tensors, metadata | {"erasure": measured})
    assert load.fingerprint_inputs(file=path.name) == before
    write_tensors(path, {name: 2 * tensor for name, tensor in tensors.items()}, metadata)
    assert load.fingerprint_inputs(file=path.name) != before


def test_the_folders_are_listed_once_for_a_file(
    nodes: Nodes, graph: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be large, and on a slow disk; the host asks at every queue."""
    path = instant(nodes, graph).args[2][0].stored.path
    erasures = importlib.import_module(f"{PACK}.nodes.erasures")
    asked: list[str] = []
    own = erasures.listed
    monkeypatch.setattr(erasures, "listed", lambda: asked.append("once") or own())
    assert str(path) in erasures.LoadErasure.fingerprint_inputs(file=path.name)
    assert asked == ["once"]
    assert erasures.LoadErasure.fingerprint_inputs(file="gone.safetensors") == ""


@pytest.mark.parametrize("damage", ["missing", "exchanged", "empty", "profile"])
def test_profiles_fail_closed(nodes: Nodes, graph: dict[str, Any], profile: str, damage: str, fake_host: Path) -> None:
    files = sorted((fake_host / "erasures").glob("*.safetensors"))
    if damage == "missing":
        files[0].unlink()
    elif damage == "exchanged":
        files[0].write_bytes(files[1].read_bytes())
    elif damage == "empty":
        files[0].write_bytes(b"")
    else:
        (fake_host / "erasures" / "profiles" / "studio.profile.json").write_text("{}")
    with pytest.raises(nodes.profiles.ProfileFailed):
        nodes.run("SafetyProfile", model=graph["model"], clip=graph["clip"], profile=profile)


def test_a_profile_may_be_for_several_kinds_of_model(
    nodes: Nodes, graph: dict[str, Any], pico_models: dict[str, DiffusersModel]
) -> None:
    def loaded(family: str) -> dict[str, Any]:
        return dict(zip(("model", "clip", "vae"), fake_comfy.loaded(copy.deepcopy(pico_models[family])), strict=True))

    large = loaded("sdxl")
    both = nodes.run("Stack", first=instant(nodes, graph).args[2], second=instant(nodes, large).args[2]).args[0]
    nodes.run("SaveSafetyProfile", erasure=both, name="school")
    digest = nodes.profiles.load_profile("school").digest()
    for one in (graph, large):
        safe = nodes.run("SafetyProfile", model=one["model"], clip=one["clip"], profile="school").args[0]
        assert {len(p) for p in safe.patches.values()} == {1}
        alone = nodes.run("ServerProfile", model=one["model"], profile="school", digest=digest).args[0]
        assert alone.patches.keys() == safe.patches.keys()
        text = nodes.run("ServerProfile", clip=one["clip"], profile="school", digest=digest).args[1]
        assert not text.patcher.patches  # nothing in the profile is for this link
    other = loaded("sd2")
    for given in ({"model": other["model"], "clip": other["clip"]}, {"model": other["model"]}, {"clip": other["clip"]}):
        with pytest.raises(nodes.profiles.ProfileFailed, match=r"is for this kind of model \(sd2\)"):
            nodes.run("ServerProfile", **given, profile="school", digest=digest)


def test_a_graph_cannot_replace_a_profile(nodes: Nodes, graph: dict[str, Any], profile: str) -> None:
    weaker = instant(nodes, graph, "dog").args[2]
    with pytest.raises(nodes.profiles.ProfileFailed, match="another profile"):
        nodes.run("SaveSafetyProfile", erasure=weaker, name=profile)


def test_routes_answer_for_files_below_the_folder_only(nodes: Nodes, graph: dict[str, Any], fake_host: Path) -> None:
    name = instant(nodes, graph).args[2][0].stored.path.name

    def ask(file: str) -> tuple[dict[str, Any], int]:
        answer: tuple[dict[str, Any], int] = asyncio.run(nodes.server.erasure(SimpleNamespace(query={"name": file})))
        return answer

    assert ask(name)[0]["words"] == ["ball"] and ask(name)[1] == 200
    for file in ("../x.safetensors", "/etc/passwd", "", "missing.safetensors"):
        content, status = ask(file)
        assert status == 404 and "error" in content
    for folder, key, foreign in (("loras", "lora_unet_x.lora_up.weight", False), ("erasures", "x.weight", True)):
        (fake_host / folder).mkdir(exist_ok=True)
        save_file({key: torch.zeros(1)}, fake_host / folder / "style.safetensors")
        file = {"loras": "loras/style.safetensors", "erasures": "style.safetensors"}[folder]
        told = {"file": file, "problem": "", "foreign": foreign, "plain": not foreign}
        assert ask(file) == (told, 200), "the badge says what it is"
    (fake_host / "erasures" / "damaged.safetensors").write_bytes(b"x")
    assert ask("damaged.safetensors")[0]["problem"]


def test_something_missing_costs_the_nodes_and_nothing_else(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = importlib.import_module(f"{PACK}.nodes")

    def fail() -> list[type]:
        raise ImportError("No module named 'safetensors'")

    monkeypatch.setattr(entry, "_load", fail)
    extension = asyncio.run(entry.comfy_entrypoint())
    assert [node.__name__ for node in asyncio.run(extension.get_node_list())] == ["Refused"]
    assert [record.message for record in caplog.records] == [
        "Concept Erasure is not available: ImportError: No module named 'safetensors'"
    ]


def test_installing_needs_nothing() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "install.py")], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_the_pack_loads_fast() -> None:
    """What the pack adds to a host's start beyond torch, in CPU time: other work on the machine does not count.

    Nor does the first start, when Python compiles the files.
    """
    keeps_compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(ROOT / "tests/comfyui/measure.py"), "start"]
    starts = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=keeps_compiled).stdout)
        for _ in range(3)
    ]
    assert min(start["cpu_seconds"] for start in starts[1:]) < 0.3
