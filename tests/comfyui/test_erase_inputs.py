"""What the Erase nodes take beside the settings: pictures, an image adapter that reads them, presets and efforts."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_comfy import moves_networks
from pack_nodes import PACK, SMALL, Nodes, concept
from safetensors.torch import save_file

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.image_prompt import attention_names

EMBEDDING, TOKENS = 24, 4
ADAPTER = "small.safetensors"
FEW = {**SMALL, "inversion_steps": 2, "preview_every": 0}


class Vision:
    """The host's CLIP_VISION: its weights are inference tensors, its answer an object with the embeddings."""

    def __init__(self, width: int = EMBEDDING) -> None:
        with torch.inference_mode():
            self.weight = torch.randn(3, width, generator=torch.Generator().manual_seed(3))

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> Any:
        assert image.shape[1:] == (64, 64, 3) and image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1
        moves_networks()
        return SimpleNamespace(image_embeds=image.mean((1, 2)) @ self.weight)


@pytest.fixture
def adapter(fake_host: Path, pico_models: dict[str, DiffusersModel]) -> dict[str, torch.Tensor]:
    """An IP-Adapter in the host's folder."""
    layers, generator = pico_models["sd1"].layers(), torch.Generator().manual_seed(0)
    names = attention_names(layers)
    width = layers[f"{names[0]}.to_k"].weight.shape[1]
    tensors = {
        "image_proj.proj.weight": torch.randn(TOKENS * width, EMBEDDING, generator=generator),
        "image_proj.proj.bias": torch.zeros(TOKENS * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    for number, name in enumerate(names):
        for kind in ("to_k", "to_v"):
            shape = layers[f"{name}.{kind}"].weight.shape
            tensors[f"ip_adapter.{2 * number + 1}.{kind}_ip.weight"] = torch.randn(shape, generator=generator) / 8
    folder = fake_host / "ipadapter"
    folder.mkdir()
    save_file(tensors, folder / ADAPTER)
    (folder / "old.bin").write_bytes(b"a pickle")
    return tensors


def pictures(count: int = 2) -> torch.Tensor:
    with torch.inference_mode():
        return torch.rand(count, 80, 96, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def read(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that erasures are made with."""
    seen: list[Any] = []
    original = nodes.erase.make_erasure

    def watched(*given: Any, pictures: Any, **named: Any) -> Any:
        seen.append(pictures)
        return original(*given, pictures=pictures, **named)

    monkeypatch.setattr(nodes.erase, "make_erasure", watched)
    return seen


def test_only_methods_that_read_pictures_take_an_adapter(
    adapter: dict[str, torch.Tensor], nodes: Nodes, pico_models: dict[str, DiffusersModel]
) -> None:
    taking = set()
    for node_id, node in nodes.all.items():
        inputs = {each.id: each for each in node.define_schema().inputs}
        if "clip_vision" in inputs or "ip_adapter" in inputs:
            taking.add(node_id.partition("Erase_")[2])
            assert inputs["clip_vision"].optional and inputs["ip_adapter"].default == "none"
            assert inputs["ip_adapter"].options == ["none", ADAPTER]  # no file that may hold programs
    assert taking == {"co_erasing", "auto"}


@pytest.mark.parametrize("method", ["co_erasing", "auto"])
def test_an_adapter_reads_the_pictures(
    nodes: Nodes, graph: dict[str, Any], adapter: dict[str, torch.Tensor], read: list[Any], method: str
) -> None:
    """No VAE is needed then, and nothing of the adapter is in the file."""
    parts = {"model": graph["model"], "clip": graph["clip"]}
    request = concept(nodes, keep="a red box", pictures=pictures())
    made = nodes.run(f"Erase_{method}", **parts, concept=request, **FEW, ip_adapter=ADAPTER, clip_vision=Vision())
    width = adapter["image_proj.norm.weight"].shape[0]
    assert read[0].latents is None and read[0].tokens.shape == (2, TOKENS, width)
    assert not read[0].tokens.is_inference(), "a training may use it"
    with torch.inference_mode():
        embedded = Vision().encode_image(nodes.host.as_image(nodes.host.fit(request.pictures, (64, 64)))).image_embeds
    tokens = (embedded @ adapter["image_proj.proj.weight"].T).view(2, TOKENS, width)
    assert torch.allclose(read[0].tokens, torch.nn.functional.layer_norm(tokens, (width,)), atol=1e-4)
    assert all(
        torch.equal(w, adapter[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"])
        for i, w in enumerate(read[0].adapter.keys.values())
    )
    assert made.args[3] and all(key.startswith("lora_") for key in made.args[3])


def test_without_an_adapter_tokens_are_learned_from_the_pictures(
    nodes: Nodes, graph: dict[str, Any], read: list[Any]
) -> None:
    request = concept(nodes, pictures=pictures())
    nodes.run("Erase_co_erasing", **graph, concept=request, **FEW)
    assert read[0].tokens is None and read[0].latents.shape == (2, 4, 8, 8)
    with pytest.raises(nodes.core.ModelError, match="VAE"):
        nodes.run("Erase_co_erasing", model=graph["model"], clip=graph["clip"], concept=request, **FEW)


def test_pictures_that_a_method_does_not_read_change_nothing(nodes: Nodes, graph: dict[str, Any]) -> None:
    parts = {"model": graph["model"], "clip": graph["clip"], "resolution": 64}
    plain = nodes.run("Erase_closed_form", **parts, concept=concept(nodes))
    shown = nodes.run("Erase_closed_form", **parts, concept=concept(nodes, pictures=pictures()))
    assert shown.ui["erasure"][0]["reused"] and shown.args[2][0].stored.path == plain.args[2][0].stored.path


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"ip_adapter": ADAPTER}, "InvalidSettings", "belong together"),
        ({"clip_vision": Vision()}, "InvalidSettings", "belong together"),
        ({"ip_adapter": ADAPTER, "clip_vision": Vision(), "pictures": None}, "InvalidSettings", "connect some"),
        ({"ip_adapter": ADAPTER, "clip_vision": Vision(7)}, "InvalidFile", "reads embeddings of width 24"),
        ({"ip_adapter": "../small.safetensors", "clip_vision": Vision()}, "InvalidFile", "no IP-Adapter"),
        ({"ip_adapter": "old.bin", "clip_vision": Vision()}, "InvalidFile", "no IP-Adapter"),
    ],
    ids=["no-vision", "no-adapter", "no-pictures", "other-vision", "outside", "pickle"],
)
def test_what_does_not_belong_together_stops_the_graph(
    nodes: Nodes,
    graph: dict[str, Any],
    adapter: dict[str, torch.Tensor],
    given: dict[str, Any],
    error: str,
    says: str,
) -> None:
    given = {"pictures": pictures(), **given}
    request = concept(nodes, pictures=given.pop("pictures"))
    with pytest.raises(getattr(nodes.core, error), match=says):
        nodes.run("Erase_co_erasing", **graph, concept=request, **FEW, **given)


@pytest.fixture
def presets(nodes: Nodes) -> Any:
    return importlib.import_module(f"{PACK}.nodes.presets")


@pytest.fixture
def methods(nodes: Nodes) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(f"{PACK}.erasure_core.methods").METHODS
    return found


def test_every_erase_node_offers_every_preset_with_its_reason(nodes: Nodes, presets: Any) -> None:
    erasing = [node for node_id, node in nodes.all.items() if "Erase_" in node_id]
    for node in erasing:
        widget = next(each for each in node.define_schema().inputs if each.id == "preset")
        assert widget.options == ["none", *presets.PRESETS] and widget.default == "none"
        assert all(preset.reason in widget.tooltip for preset in presets.PRESETS.values())


def test_a_preset_takes_the_place_of_defaults_and_of_nothing_else(presets: Any, methods: dict[str, Any]) -> None:
    esd = methods["esd"]
    plain = esd.settings()
    assert presets.with_preset(esd, plain, "none") == (plain, "")
    styled, said = presets.with_preset(esd, plain, "style")
    assert styled.spare_layout == 0.2 and "spare_layout 0.2" in said
    own = esd.settings(spare_layout=0.5, steps=7)
    kept, said = presets.with_preset(esd, own, "style")
    assert (kept.spare_layout, kept.steps) == (0.5, 7) and "spare_layout" not in said
    with pytest.raises(Exception, match="There is no preset 'x'"):
        presets.with_preset(esd, plain, "x")


def test_every_preset_suits_every_method_or_says_that_it_does_nothing(presets: Any, methods: dict[str, Any]) -> None:
    for method in methods.values():
        for name in presets.PRESETS:
            settings, said = presets.with_preset(method, method.settings(), name)
            wanted = presets.preset_settings(name, method)
            assert {key: getattr(settings, key) for key in wanted} == wanted
            assert ("nothing to replace" in said) == (settings == method.settings())


@pytest.fixture
def said(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Erase nodes say."""
    told: list[str] = []
    monkeypatch.setattr(nodes.erase, "say", lambda node_id, text: told.append(text))
    return told


def test_the_erasure_is_made_with_the_preset_and_the_node_says_so(
    nodes: Nodes, graph: dict[str, Any], said: list[str]
) -> None:
    made = nodes.run("Erase_leco", **graph, concept=concept(nodes), **FEW, preset="style")
    settings = made.args[2][0].stored.manifest.settings
    assert settings["spare_layout"] == 0.2 and settings["rank"] == SMALL["rank"]
    assert "Preset style" in said[-1] and "spare_layout 0.2" in said[-1]


@pytest.fixture
def efforts(nodes: Nodes) -> Any:
    return importlib.import_module(f"{PACK}.erasure_core.effort")


def test_every_node_that_trains_offers_every_effort_and_no_other_node_does(
    nodes: Nodes, efforts: Any, methods: dict[str, Any]
) -> None:
    for name, method in methods.items():
        inputs = nodes.all[f"ConceptErasureErase_{name}"].define_schema().inputs
        offered = [each for each in inputs if each.id == "effort"]
        assert len(offered) == (method.solve is None)
        for widget in offered:
            assert (widget.options, widget.default) == (list(efforts.EFFORTS), "balanced")
            assert all(what in widget.tooltip for what in efforts.EFFORTS.values())
            assert widget.optional, "API clients that do not know it are not asked for it"
            assert inputs[-1] is widget, "values of saved graphs, and links to other inputs, are found by place"


def test_a_graph_from_before_there_were_efforts_makes_what_it_made(nodes: Nodes, graph: dict[str, Any]) -> None:
    node = nodes.all["ConceptErasureErase_leco"]
    known = {each.id: each.default for each in node.define_schema().inputs if each.id != "effort" and not each.optional}
    with torch.inference_mode():
        before = node.execute(**{**known, **graph, "concept": concept(nodes), **FEW})
    now = nodes.run("Erase_leco", **graph, concept=concept(nodes), **FEW)
    assert now.ui["erasure"][0]["reused"] and now.args[2][0].stored.path == before.args[2][0].stored.path


def test_an_effort_takes_the_place_of_defaults_and_the_node_says_so(
    nodes: Nodes, graph: dict[str, Any], said: list[str]
) -> None:
    made = nodes.run("Erase_leco", **graph, concept=concept(nodes), **FEW, effort="fast")
    settings = made.args[2][0].stored.manifest.settings
    kept = {name: settings[name] for name in ("steps", "trajectories", "trajectory_steps")}
    assert settings["refresh"] == FEW["steps"] and kept == {name: FEW[name] for name in kept}
    assert f"fast: {FEW['steps']} steps of {FEW['batch']}" in said[-1]
    with pytest.raises(nodes.core.InvalidSettings, match="There is no effort 'x'; choose from fast"):
        nodes.run("Erase_leco", **graph, concept=concept(nodes), **FEW, effort="x")


def test_low_vram_says_what_is_free_and_finds_its_file_when_other_memory_is(
    nodes: Nodes, graph: dict[str, Any], efforts: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lent: list[bool] = []

    def free(device: torch.device) -> int:
        lent.append(not torch.is_inference_mode_enabled() and torch.is_grad_enabled())
        return 0 if len(lent) < 3 else 2**40

    monkeypatch.setattr(efforts, "free_memory", free)
    made, again = (nodes.run("Erase_leco", **graph, concept=concept(nodes), **FEW, effort="low-vram") for _ in range(2))
    assert lent[0], "the memory is looked at when the host has put the model where it trains"
    assert made.args[2][0].stored.manifest.settings["batch"] == 1
    assert not made.ui["erasure"][0]["reused"] and again.ui["erasure"][0]["reused"]
    assert all("low-vram: with 0.0 GiB of free memory, 1 at a time" in text for text in said if "\n" in text)
    assert "used again" in said[-1] and "low-vram" in said[-1]


def test_the_node_says_which_prompt_to_keep_it_left_out(nodes: Nodes, graph: dict[str, Any], said: list[str]) -> None:
    asked = concept(nodes, keep="a star\na ball on a table")
    made = nodes.run("Erase_leco", **graph, concept=asked, **FEW)
    assert made.args[2][0].stored.manifest.keep == ("a star",) and "Not kept: " in said[-1]
