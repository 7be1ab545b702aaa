"""The pack in a real ComfyUI, driven as a browser drives it: through HTTP. Skipped where COMFYUI_PATH names none."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_client import ROOT, Events, GraphFailed, GraphRefused, Graphs, Host, make_base, picture_of, running
from PIL import Image
from safetensors.torch import load_file, save_file

from erasure_core.methods import METHODS

SHORT = {"steps": 4, "trajectories": 5, "trajectory_steps": 3, "batch": 1, "rank": 4, "preview_every": 2}


@pytest.fixture(scope="module")
def graphs(host: Host) -> Graphs:
    return Graphs(host)


@pytest.fixture(scope="module")
def plain(host: Host, graphs: Graphs) -> str:
    """The picture of the untouched model."""
    return host.picture_hash(picture_of(host.run(graphs.paint())))


@pytest.fixture(scope="module")
def erased(host: Host, graphs: Graphs) -> tuple[str, str]:
    """An instant erasure: its file, and the picture behind the node that made it."""
    outputs = host.run({**graphs.paint("erase"), **graphs.erase("closed_form")})
    return outputs["erase"]["erasure"][0]["file"], host.picture_hash(picture_of(outputs))


def files(host: Host, folder: str = "models/erasures") -> list[Path]:
    return sorted((host.base / folder).glob("*.safetensors"))


def painted(host: Host, prompt: dict[str, Any], **more: Any) -> str:
    return host.picture_hash(picture_of(host.run(prompt, **more)))


def test_every_method_has_a_node(graphs: Graphs) -> None:
    assert {f"ConceptErasureErase_{name}" for name in METHODS} <= set(graphs.known)


def test_what_only_the_server_puts_into_graphs_is_hidden(graphs: Graphs) -> None:
    hidden = {name for name, node in graphs.known.items() if node.get("deprecated") or node.get("dev_only")}
    ours = {name for name in hidden if name.startswith("ConceptErasure")}
    assert ours == {"ConceptErasureRefused", "ConceptErasureServerProfile"}


QUICK = {**SHORT, "candidates": 4, "check_every": 2, "check_starts": 2, "check_steps": 2, "warm_up": 1} | {
    "own_pictures": 1, "inversion_steps": 2, "text_prompts": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_erases_and_leaves_the_model_alone(host: Host, graphs: Graphs, plain: str, name: str) -> None:
    inputs = graphs.known[f"ConceptErasureErase_{name}"]["input"]
    known = {key for part in inputs.values() for key in part}
    erase = graphs.erase(name, **{key: value for key, value in QUICK.items() if key in known})
    assert painted(host, {**graphs.paint("erase"), **erase}) != plain
    assert painted(host, graphs.paint()) == plain


def test_a_file_is_the_same_behind_load_and_behind_the_stock_loader(
    host: Host, graphs: Graphs, plain: str, erased: tuple[str, str]
) -> None:
    file, picture = erased
    assert picture != plain
    assert painted(host, {**graphs.paint("apply"), **graphs.apply(file)}) == picture
    shutil.copy(host.base / "models/erasures" / file, host.base / "models/loras" / file)
    links = {"model": ["base", 0], "clip": ["base", 1], "lora_name": file, "strength_model": 1.0, "strength_clip": 1.0}
    stock = {"lora": {"class_type": "LoraLoader", "inputs": links}}
    assert painted(host, {**graphs.paint("lora"), **stock}) == picture
    assert painted(host, graphs.paint()) == plain


def test_strengths_and_stacks(host: Host, graphs: Graphs, plain: str, erased: tuple[str, str]) -> None:
    file, full = erased
    off, half = (painted(host, {**graphs.paint("apply"), **graphs.apply(file, strength=s)}) for s in (0.0, 0.5))
    assert off == plain and half not in (plain, full)
    stack = {
        "stack": graphs.node("Stack", first=["load", 0], second=["load", 0], strength_first=0.5, strength_second=0.5)
    }
    twice = {**graphs.paint("apply"), **graphs.apply(file, erasure=["stack", 0]), **stack}
    once = {**graphs.paint("apply"), **graphs.apply(file)}
    pixels = [_pixels(host, picture_of(host.run(graph))) for graph in (twice, once)]
    assert (pixels[0] - pixels[1]).abs().max() <= 1


def test_block_weights_and_step_ranges(host: Host, graphs: Graphs, plain: str, erased: tuple[str, str]) -> None:
    file, full = erased
    never = painted(host, {**graphs.paint("apply"), **graphs.apply(file, block_weights="unet.* = 0")})
    late = painted(host, {**graphs.paint("apply"), **graphs.apply(file, start=0.5)})
    assert never == plain and late not in (plain, full)
    assert painted(host, graphs.paint()) == plain  # no hook of a step range stays behind


def test_training_with_previews_and_again_from_its_file(host: Host, graphs: Graphs, plain: str) -> None:
    # A seed of its own: the same inputs find their file again, and another test trains with SHORT as it is.
    graph = {**graphs.paint("erase"), **graphs.erase(vae=["base", 2], **{**SHORT, "seed": 7})}
    first = host.run(graph)
    shown = first["erase"]["erasure"][0]
    assert not shown["reused"] and len(shown["losses"]) == 4 and len(first["erase"]["images"]) == 4
    graph["paint"]["inputs"]["seed"] = 2
    host.run(graphs.paint(seed=3))  # another prompt in between: the host forgets the outputs of the first
    again = host.run(graph)
    assert again["erase"]["erasure"][0]["reused"] and again["erase"]["erasure"][0]["file"] == shown["file"]
    assert painted(host, graphs.paint()) == plain


def test_what_an_erase_node_cannot_put_out_stops_its_branch_alone(host: Host, graphs: Graphs, plain: str) -> None:
    """No VAE and no loss: the host shows our sentences for the preview and the plot, and paints the picture."""
    graph = {**graphs.paint("erase"), **graphs.erase("closed_form", replace=False, neighbours=0)}
    graph["look"] = {"class_type": "PreviewImage", "inputs": {"images": ["erase", 5]}}
    graph["plot"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["erase", 4], "filename_prefix": "x"}}
    events, told = host.listen(), {}
    queued = host.queue(graph, client_id=events.client_id)
    for message in events:
        if message["type"] == "execution_error":
            told[message["data"]["node_id"]] = message["data"]["exception_message"]
        if message["type"] == "execution_success":
            break
    events.close()
    assert "without a VAE" in told["look"] and "no loss to plot" in told["plot"]
    assert picture_of(host.wait(queued))


def steps_told(events: Events) -> list[int]:
    """The steps of a training that are told from here until the graph ends."""
    told = [message["data"] for message in events.until_the_end() if message["type"] == "concept_erasure.progress"]
    return [data["step"] for data in told if data["stage"] == "training"]


def test_interrupting_stops_within_a_step_and_the_same_graph_goes_on(host: Host, graphs: Graphs, plain: str) -> None:
    graph = {**graphs.paint("erase"), **graphs.erase(**{**SHORT, "steps": 40, "seed": 5, "preview_every": 0})}
    events = host.listen()
    queued = host.queue(graph, client_id=events.client_id)
    told = events.training_step(2)
    assert told["total"] == 40 and told["seconds_left"] > 0 and {"erase", "keep"} <= set(told["losses"][-1][1])
    host.interrupt()
    # The step that ran when the request came may end, and one more be told that was already on its way.
    last = max([told["step"], *steps_told(events)])
    assert last <= told["step"] + 2
    with pytest.raises(GraphFailed, match="interrupted"):
        host.wait(queued)
    assert list((host.base / "models/erasures").glob("*.partial"))
    assert painted(host, graphs.paint()) == plain
    queued = host.queue(graph, client_id=events.client_id)
    assert min(steps_told(events)) >= last, "it began anew"
    events.close()
    assert len(host.wait(queued)["erase"]["erasure"][0]["losses"]) == 40
    assert not list((host.base / "models/erasures").glob("*.partial"))


@pytest.mark.parametrize("explicit", [False, True], ids=["both", "explicit"])
def test_previews_show_the_concept_beside_a_kept_prompt_and_no_explicit_concept(
    host: Host, graphs: Graphs, explicit: bool
) -> None:
    nodes = graphs.erase(**{**SHORT, "seed": 11 + explicit, "preview_every": 2})
    nodes["concept"]["inputs"]["explicit"] = explicit
    events = host.listen()
    queued = host.queue({**graphs.paint("erase", steps=1), **nodes}, client_id=events.client_id)
    events.until_the_end()
    events.close()
    host.wait(queued)
    wide = [picture for picture in events.previews() if picture.width == 2 * picture.height]
    square = [picture for picture in events.previews() if picture.width == picture.height]
    assert (bool(wide), bool(square)) == (not explicit, explicit)


def test_the_host_offers_every_template_with_its_picture(host: Host) -> None:
    templates = {path.stem for path in (ROOT / "example_workflows").glob("*.json")}
    offered = host.get("/workflow_templates")
    assert set(offered["concept-erasure"]) == templates
    for name in templates:
        address = f"/api/workflow_templates/concept-erasure/{name}"
        assert json.loads(host.open(f"{address}.json"))["nodes"]
        with Image.open(io.BytesIO(host.open(f"{address}.jpg"))) as picture:
            assert picture.width > 400


def test_a_lora_upstream_counts(host: Host, graphs: Graphs) -> None:
    """The closed form edits the weights that the host computes with, so another LoRA gives another erasure."""
    lora = host.base / "models/loras/upstream.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    torch.manual_seed(0)
    save_file(
        {f"{name}.lora_up.weight": torch.randn(320, 4) / 20, f"{name}.lora_down.weight": torch.randn(4, 768)}, lora
    )
    links = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "lora_name": lora.name,
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    stock = {"lora": {"class_type": "LoraLoader", "inputs": links}}
    erase = graphs.erase("closed_form", model=["lora", 0], clip=["lora", 1])
    outputs = host.run({**graphs.paint("erase"), **stock, **erase})
    behind = {**graphs.apply(outputs["erase"]["erasure"][0]["file"], model=["lora", 0], clip=["lora", 1])}
    assert painted(host, {**graphs.paint("apply"), **stock, **behind}) == host.picture_hash(picture_of(outputs))
    without = host.run({**graphs.paint("erase"), **graphs.erase("closed_form")})
    assert without["erase"]["erasure"][0]["file"] != outputs["erase"]["erasure"][0]["file"]


def test_two_queued_graphs(host: Host, graphs: Graphs, plain: str, erased: tuple[str, str]) -> None:
    first = host.queue({**graphs.paint("apply"), **graphs.apply(erased[0])})
    second = host.queue(graphs.paint())
    hashes = [host.picture_hash(picture_of(host.wait(queued))) for queued in (first, second)]
    assert hashes == [erased[1], plain]


def test_stock_nodes_take_loss_and_lora(host: Host, graphs: Graphs) -> None:
    stock = {"LossGraphNode": "loss", "PlotLossGraph": "loss"}
    plot = next((name for name in stock if name in graphs.known), None)
    save = "SaveLoRA" if "SaveLoRA" in graphs.known else "SaveLoRANode"
    graph = {**graphs.paint("erase"), **graphs.erase(**{**SHORT, "seed": 9})}
    graph["keep"] = {"class_type": save, "inputs": {"lora": ["erase", 3], "prefix": "loras/erased"}}
    if plot is not None:
        graph["plot"] = {"class_type": plot, "inputs": {"loss": ["erase", 4], "filename_prefix": "loss"}}
    outputs = host.run(graph)
    saved = next((host.base / "output/loras").glob("erased*.safetensors"))
    ours = load_file(host.base / "models/erasures" / outputs["erase"]["erasure"][0]["file"])
    theirs = load_file(saved)
    assert set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_saving_inspecting_converting(host: Host, graphs: Graphs, erased: tuple[str, str]) -> None:
    links = {"model": ["base", 0], "clip": ["base", 1]}
    graph = {
        **graphs.apply(erased[0]),
        **graphs.paint("again"),
        "dense": graphs.node("Convert", erasure=["load", 0], form="dense", **links),
        "save": graphs.node("Save", erasure=["dense", 0], name="dense ball", **links),
        "look": graphs.node("Inspect", erasure=["save", 0]),
        "again": graphs.node("Apply", erasure=["save", 0], **links),
        "show": {"class_type": "SaveImage", "inputs": {"images": ["see", 0], "filename_prefix": "x"}},
    }
    outputs = host.run(graph)
    assert "dense" in outputs["look"]["text"][0] and (host.base / "models/erasures/dense_ball.safetensors").is_file()
    dense = _pixels(host, picture_of(outputs, "show"))
    low_rank = _pixels(host, picture_of(host.run({**graphs.paint("apply"), **graphs.apply(erased[0])})))
    assert (dense - low_rank).abs().max() <= 1


def _pixels(host: Host, shown: dict[str, str]) -> torch.Tensor:
    with Image.open(io.BytesIO(host.picture_bytes(shown))) as picture:
        return torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).float()


def test_baking(host: Host, graphs: Graphs, erased: tuple[str, str]) -> None:
    links = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "erasure": ["load", 0]}
    graph = {**graphs.apply(erased[0]), **graphs.paint(), "bake": graphs.node("Bake", **links)}
    graph.pop("apply")
    host.run(graph)
    baked = next((host.base / "output/checkpoints").glob("erased*.safetensors"))
    baked.rename(host.base / "models/checkpoints/baked.safetensors")
    again = graphs.paint()
    again["base"]["inputs"]["ckpt_name"] = "baked.safetensors"
    pixels = [
        _pixels(host, picture_of(host.run(g))) for g in (again, {**graphs.paint("apply"), **graphs.apply(erased[0])})
    ]
    (host.base / "models/checkpoints/baked.safetensors").unlink()
    assert (pixels[0] - pixels[1]).abs().max() <= 1


def test_files_that_cannot_be_used_stop_the_graph(host: Host, graphs: Graphs, erased: tuple[str, str]) -> None:
    folder = host.base / "models/erasures"
    (folder / "broken.safetensors").write_bytes((folder / erased[0]).read_bytes()[:500])
    tensors = load_file(folder / erased[0])
    with (folder / erased[0]).open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    manifest = json.loads(metadata["erasure"]) | {"base_fingerprint": "0" * 64, "base_sketch": [1.0] * 64}
    save_file(tensors, folder / "other.safetensors", {**metadata, "erasure": json.dumps(manifest)})
    for name, words in (("broken.safetensors", "cut short"), ("other.safetensors", "another base")):
        with pytest.raises(GraphFailed, match=words):
            host.run({**graphs.paint("apply"), **graphs.apply(name)})
        (folder / name).unlink()
    with pytest.raises(GraphRefused, match="There is no file"):
        host.run({**graphs.paint("apply"), **graphs.apply("../missing.safetensors")})


def test_a_concept_without_words_is_refused_before_anything_runs(host: Host, graphs: Graphs) -> None:
    with pytest.raises(GraphRefused, match="The concept is empty"):
        host.queue({**graphs.paint("erase"), **graphs.erase("closed_form", words=" ")})


def profile_of(host: Host, graphs: Graphs, file: str, name: str = "studio") -> None:
    graph = {
        "load": graphs.node("Load", file=file),
        "keep": graphs.node("SaveSafetyProfile", erasure=["load", 0], name=name),
    }
    host.run(graph)


def test_a_safety_profile_in_the_graph(host: Host, graphs: Graphs, erased: tuple[str, str]) -> None:
    profile_of(host, graphs, erased[0])
    safe = {"safe": graphs.node("SafetyProfile", model=["base", 0], clip=["base", 1], profile="studio")}
    shown = picture_of(host.run({**graphs.paint("safe"), **safe}))
    assert host.picture_hash(shown) == erased[1]
    with Image.open(io.BytesIO(host.picture_bytes(shown))) as picture:
        assert json.loads(picture.info["concept_erasure_profile"])[0]["profile"] == "studio"


def test_the_default_profile_covers_graphs_without_the_node(
    host: Host, graphs: Graphs, plain: str, erased: tuple[str, str]
) -> None:
    profile_of(host, graphs, erased[0])
    setting = host.base / "models/erasures/profiles/server.json"
    setting.write_text(json.dumps({"default_profile": "studio"}))
    try:
        shown = picture_of(host.run(graphs.paint()))
        assert host.picture_hash(shown) == erased[1]
        with Image.open(io.BytesIO(host.picture_bytes(shown))) as picture:
            assert json.loads(picture.info["concept_erasure_profile"])[0]["by"] == "server"
        assert host.get("/concept_erasure/default_profile") == {"profile": "studio"}
        setting.write_text("damaged")
        with pytest.raises(GraphRefused, match="cannot be read"):
            host.queue(graphs.paint())
        setting.write_text(json.dumps({"default_profile": "missing"}))
        with pytest.raises(GraphRefused, match="There is no safety profile"):
            host.queue(graphs.paint())
        setting.write_text(json.dumps({"default_profile": "studio"}))
        kept = host.base / "models/erasures" / erased[0]
        kept.rename(kept.with_suffix(".away"))
        try:
            with pytest.raises(GraphFailed, match="cannot be applied"):
                host.run(graphs.paint(seed=77))
        finally:
            kept.with_suffix(".away").rename(kept)
    finally:
        setting.unlink()
    assert painted(host, graphs.paint()) == plain


def test_routes(host: Host, graphs: Graphs, erased: tuple[str, str]) -> None:
    assert erased[0] in host.get("/concept_erasure/erasures")
    assert host.get(f"/concept_erasure/erasure?name={erased[0]}")["words"] == ["ball"]
    info = host.get("/object_info/ConceptErasureLoad")["ConceptErasureLoad"]["input"]["required"]["file"]
    assert erased[0] in (info[0] if isinstance(info[0], list) else info[1]["options"])


def test_a_killed_host_goes_on_after_a_restart(comfyui_folder: Path, twin: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", twin)
    folder = base / "models/erasures"
    with running(comfyui_folder, base) as host:
        graphs = Graphs(host)
        graph = {**graphs.paint("erase"), **graphs.erase(**{**SHORT, "steps": 30, "preview_every": 0})}
        events = host.listen()
        queued = host.queue(graph, client_id=events.client_id)
        events.training_step(2)
        host.interrupt()
        with pytest.raises(GraphFailed):
            host.wait(queued)
        events.close()
        events = host.listen()
        host.queue(graph, client_id=events.client_id)
        assert events.training_step(4)["step"] >= 4  # it went on, and is killed in the middle of it
        host.process.kill()
        host.process.wait()
    assert list(folder.glob("*.partial")) and not list(folder.glob("*.safetensors"))
    with running(comfyui_folder, base) as host:
        outputs = host.run(graph)
        assert len(outputs["erase"]["erasure"][0]["losses"]) == 30 and not list(folder.glob("*.partial"))
