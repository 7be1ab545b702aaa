"""The default profile on a fake host: graphs that the server rewrites, and what their pictures say of it."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pack_nodes import PACK, Nodes, instant

GRAPH = {
    "1": {"class_type": "Loader", "inputs": {"name": "x"}},
    "2": {"class_type": "Lora", "inputs": {"model": ["1", 0], "clip": ["1", 1]}},
    "3": {"class_type": "Sampler", "inputs": {"model": ["2", 0], "text": ["2", 1], "vae": ["1", 2], "pair": [1, 2]}},
}


def reason_of(got: dict[str, Any]) -> str:
    (node,) = got["prompt"].values()
    return str(node["inputs"]["reason"])


def is_refused(got: dict[str, Any]) -> bool:
    return [node["class_type"] for node in got["prompt"].values()] == ["ConceptErasureRefused"]


@pytest.fixture
def server(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Any:
    kinds = {"Loader": ("MODEL", "CLIP", "VAE"), "Lora": ("MODEL", "CLIP"), "Sampler": ("IMAGE",), "Unet": ("MODEL",)}
    kinds |= {nodes.profiles.SERVER_ID: ("MODEL", "CLIP"), nodes.profiles.APPLY_ID: ("MODEL", "CLIP")}
    kinds |= {"Erasure": ("ERASURE",), "Save": ()}
    known = {name: SimpleNamespace(RETURN_TYPES=types, OUTPUT_NODE=name == "Save") for name, types in kinds.items()}
    monkeypatch.setitem(sys.modules["nodes"].__dict__, "NODE_CLASS_MAPPINGS", known)
    return nodes.server


def test_without_a_default_profile_graphs_stay_as_they_are(server: Any) -> None:
    sent = {"prompt": copy.deepcopy(GRAPH)}
    assert server.protect(sent) is sent


@pytest.mark.parametrize("default", [False, True])
def test_a_graph_cannot_claim_a_profile(
    server: Any, profile: str, monkeypatch: pytest.MonkeyPatch, default: bool
) -> None:
    """The metadata of a picture names what this server applied, never what the sender wrote there."""
    if default:
        monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    claimed = {"workflow": {"a": 1}, server.METADATA: [{"profile": "forged", "by": "server"}]}
    sent = {"prompt": copy.deepcopy(GRAPH), "extra_data": {"extra_pnginfo": claimed, "client_id": "c"}}
    got = server.protect(sent)["extra_data"]
    assert got["client_id"] == "c" and got["extra_pnginfo"].pop("workflow") == {"a": 1}
    assert [each["profile"] for each in got["extra_pnginfo"].get(server.METADATA, [])] == [profile] * default
    assert claimed[server.METADATA]  # what was sent is not written to


def test_the_default_profile_is_put_behind_every_model_and_clip(
    server: Any, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    sent = {"prompt": copy.deepcopy(GRAPH), "client_id": "c"}
    got = server.protect(sent)
    assert sent["prompt"] == GRAPH
    nodes = got["prompt"]
    assert nodes["2"]["inputs"] == {"model": ["profile_1_0", 0], "clip": ["profile_1_0", 1]}
    assert nodes["3"]["inputs"]["model"] == ["profile_2_0", 0] and nodes["3"]["inputs"]["text"] == ["profile_2_0", 1]
    assert nodes["3"]["inputs"]["vae"] == ["1", 2]
    assert nodes["profile_1_0"]["inputs"]["model"] == ["1", 0] and nodes["profile_1_0"]["inputs"]["profile"] == "studio"
    assert got["extra_data"]["extra_pnginfo"]["concept_erasure_profile"][0]["profile"] == "studio"


def test_the_setting_can_be_a_file(server: Any, profile: str, fake_host: Path) -> None:
    path = fake_host / "erasures" / "profiles" / "server.json"
    path.write_text(json.dumps({"default_profile": profile}))
    assert "profile_1_0" in server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"]
    path.write_text(json.dumps({"default_profile": None}))
    assert server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"] == GRAPH


@pytest.mark.parametrize("setting", ["{", "[]", '{"default_profile": 3}', '{"default_profile": "missing"}', "{}",
                                     '{"default_profile": ""}', '{"default_profile": " "}', "[" * 100_000])  # fmt: skip
def test_a_setting_that_cannot_be_kept_refuses_every_graph(
    server: Any, nodes: Nodes, fake_host: Path, setting: str
) -> None:
    path = fake_host / "erasures" / "profiles" / "server.json"
    path.parent.mkdir(parents=True)
    path.write_text(setting)
    got = server.protect({"prompt": copy.deepcopy(GRAPH), "partial_execution_targets": ["3"]})
    assert is_refused(got)
    assert "partial_execution_targets" not in got
    (name,) = got["prompt"]
    assert name not in GRAPH, "the browser would mark a node of the user's"
    reason = got["prompt"][name]["inputs"]["reason"]
    assert nodes.all["ConceptErasureRefused"].validate_inputs(reason=reason) == reason != ""


@pytest.mark.parametrize("way", ["link", "loop", "folder", "lost folder", "pipe"])
def test_a_setting_that_is_there_in_any_way_is_a_setting(server: Any, fake_host: Path, way: str) -> None:
    """What a link leads to may be on a drive that is not mounted just now."""
    path = fake_host / "erasures" / "profiles" / "server.json"
    assert not is_refused(server.protect({"prompt": copy.deepcopy(GRAPH)}))
    path.parent.parent.mkdir(exist_ok=True)
    if way == "lost folder":
        path.parent.symlink_to(fake_host / "elsewhere")
    else:
        path.parent.mkdir()
        {
            "link": lambda: path.symlink_to(fake_host / "elsewhere.json"),
            "loop": lambda: path.symlink_to(path),
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
        }[way]()
    got = server.protect({"prompt": copy.deepcopy(GRAPH)})
    assert is_refused(got) and "server.json cannot be read" in reason_of(got)


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_variable_without_a_name_refuses_every_graph(
    server: Any, monkeypatch: pytest.MonkeyPatch, blank: str
) -> None:
    """As a script leaves it whose own variable is not set; it was meant to name a profile."""
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", blank)
    assert "CONCEPT_ERASURE_PROFILE is empty" in reason_of(server.protect({"prompt": copy.deepcopy(GRAPH)}))


def test_files_with_a_byte_order_mark_are_read(server: Any, profile: str, fake_host: Path) -> None:
    """Some editors write one."""
    folder = fake_host / "erasures" / "profiles"
    (folder / "server.json").write_text(json.dumps({"default_profile": profile}), encoding="utf-8-sig")
    own = folder / "studio.profile.json"
    own.write_text(own.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert "profile_1_0" in server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"]


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (None, "no nodes by their ids"),
        ([], "no nodes by their ids"),
        ({"1": []}, "node 1 is not a node"),
        ({"1": {"inputs": {}}}, "node 1 lacks 'class_type'"),
        ({"1": {"class_type": "Loader"}}, "node 1 lacks 'inputs'"),
        ({"1": {"class_type": ["Loader"], "inputs": {}}}, "node 1 lacks 'class_type'"),
    ],
)
@pytest.mark.parametrize("default", [False, True])
def test_what_is_wrong_with_a_graph_is_told_in_a_sentence(
    server: Any, profile: str, monkeypatch: pytest.MonkeyPatch, default: bool, prompt: Any, told: str
) -> None:
    if default:
        monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    reason = reason_of(server.protect({"prompt": prompt}))
    assert reason.startswith("The graph is malformed: ") and told in reason


def test_a_graph_of_a_profile_that_was_changed_says_how_to_go_on(
    server: Any, nodes: Nodes, graph: dict[str, Any], profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once no default profile is set, queueing a graph of the history again changes nothing in it."""
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    guard = server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"]["profile_1_0"]["inputs"]
    path = nodes.refusal.profile_folder() / "studio.profile.json"
    both = {"model": graph["model"], "clip": graph["clip"]}
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"entries": content["entries"][:1]}))
    with pytest.raises(nodes.profiles.ProfileFailed, match=r"was changed .* remove the Server Safety Profile nodes"):
        nodes.run("ServerProfile", **{**guard, **both})
    path.unlink()
    with pytest.raises(nodes.profiles.ProfileFailed, match=r"no safety profile .* remove the Server Safety Profile"):
        nodes.run("ServerProfile", **{**guard, **both})


@pytest.mark.parametrize("prompt", [None, {"1": {}}, {"1": None}, {"1": {"class_type": "Loader", "inputs": None}}, []])
def test_an_exception_never_leaves_the_handler(
    server: Any, profile: str, monkeypatch: pytest.MonkeyPatch, prompt: Any
) -> None:
    """The host would log it and run the graph unprotected."""
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    assert is_refused(server.protect({"prompt": prompt}))


@pytest.mark.parametrize("link", [["1", -3], ["1", 3], ["1", True], ["1", 0.0], ["1", "0"], {"__value__": ["1", 0]}])
def test_no_way_of_writing_a_link_leads_around_the_guard(
    server: Any, profile: str, monkeypatch: pytest.MonkeyPatch, link: Any
) -> None:
    """The host counts slots below zero from the end, and unwraps values before it follows links."""
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    sent = copy.deepcopy(GRAPH)
    sent["3"]["inputs"]["model"] = link
    got = server.protect({"prompt": sent})
    assert is_refused(got) and "'model' of node 3" in reason_of(got)


def test_nodes_of_old_names_are_exchanged_before_the_guard_looks(
    server: Any, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer hosts exchange them behind the handler, which would else refuse graphs that run."""
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    sent = copy.deepcopy(GRAPH)
    sent["2"]["class_type"] = "OldLora"
    got = server.protect({"prompt": copy.deepcopy(sent)})
    assert is_refused(got) and "no node of the type 'OldLora' (node 2)" in reason_of(got)

    def apply_replacements(prompt: dict[str, Any]) -> None:
        prompt["2"] = {**prompt["2"], "class_type": "Lora"}

    manager = SimpleNamespace(apply_replacements=apply_replacements)
    instance = SimpleNamespace(node_replace_manager=manager)
    monkeypatch.setattr(sys.modules["server"].PromptServer, "instance", instance, raising=False)
    guarded = server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"]
    assert server.protect({"prompt": sent})["prompt"] == guarded and sent["2"]["class_type"] == "OldLora"


def test_a_graph_that_was_guarded_can_be_sent_again(server: Any, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history and the pictures hold graphs as they ran. Another server's guard is none of ours."""
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    once = server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"]
    forged = copy.deepcopy(once)
    for node in forged.values():
        node["inputs"] |= {"profile": "weak", "digest": "x"} if "digest" in node["inputs"] else {}
    for sent in (once, forged):
        assert server.protect({"prompt": sent})["prompt"] == once


@pytest.mark.parametrize("own", [{}, {"model": "x"}, {"model": ["9", 0]}, {"model": ["10", 0]}])
def test_a_graph_cannot_bring_its_own_guard(
    server: Any, profile: str, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    guards = {"9": own, "10": {"model": ["9", 0]}}
    sent = copy.deepcopy(GRAPH) | {key: {"class_type": server.SERVER_ID, "inputs": i} for key, i in guards.items()}
    sent["3"]["inputs"]["model"] = ["10", 0]
    got = server.protect({"prompt": sent})
    assert is_refused(got) and "has nothing to hand on" in reason_of(got)


@pytest.mark.parametrize("name", ["my studio", "my_studio"])
def test_a_profile_is_found_by_its_own_name_and_by_its_files(
    server: Any, nodes: Nodes, graph: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    nodes.run("SaveSafetyProfile", erasure=instant(nodes, graph).args[2], name="my studio")
    check_guarding(server, nodes, graph, monkeypatch, name)


def test_a_profile_whose_file_was_renamed_is_still_found(
    server: Any, nodes: Nodes, graph: dict[str, Any], profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = nodes.refusal.profile_folder() / "studio.profile.json"
    path.rename(path.with_name("other.profile.json"))
    check_guarding(server, nodes, graph, monkeypatch, "other")


def check_guarding(
    server: Any, nodes: Nodes, graph: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The guard that the server puts in finds the profile that it was put in for."""
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", name)
    guard = server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"]["profile_1_0"]["inputs"]
    both = {"model": graph["model"], "clip": graph["clip"]}
    assert nodes.run("ServerProfile", **{**guard, **both}).args[0].patches


def test_further_folders_leave_the_default_profile_in_force(
    server: Any, nodes: Nodes, profile: str, fake_host: Path
) -> None:
    """The host reads extra_model_paths.yaml before any node, so that its folders are there first."""
    known = sys.modules["folder_paths"].__dict__
    known["folder_names_and_paths"]["erasures"] = ([], set())
    known["add_model_folder_path"]("erasures", str(fake_host / "extra"), is_default=True)
    nodes.host.register_folders()
    assert nodes.host.library().folders == [fake_host / "erasures", fake_host / "extra"]
    (fake_host / "erasures" / "profiles" / "server.json").write_text(json.dumps({"default_profile": profile}))
    known["folder_names_and_paths"]["erasures"][0].reverse()  # as a list read later may say
    assert "profile_1_0" in server.protect({"prompt": copy.deepcopy(GRAPH)})["prompt"]


SAFE = ["safe", 0]
PAINTED = {
    **GRAPH,
    "safe": {"class_type": "ConceptErasureSafetyProfile", "inputs": {"model": ["1", 0], "clip": ["1", 1]}},
    "3": {"class_type": "Sampler", "inputs": {"model": SAFE, "text": ["safe", 1], "vae": ["1", 2]}},
    "4": {"class_type": "Save", "inputs": {"images": ["3", 0]}},
}


def sampled(*models: Any) -> dict[str, Any]:
    """Another picture of the graph, painted with these links."""
    inputs = {f"model_{number}": link for number, link in enumerate(models)}
    return {"5": {"class_type": "Sampler", "inputs": inputs}, "6": {"class_type": "Save", "inputs": {"a": ["5", 0]}}}


@pytest.mark.parametrize(
    ("more", "claimed"),
    [
        ({}, True),
        ({"7": {"class_type": "Lora", "inputs": {"model": SAFE}}, **sampled(["7", 0])}, True),
        ({"7": {"class_type": "Erasure", "inputs": {}}, "8": {"class_type": "Save", "inputs": {"e": ["7", 0]}}}, True),
        (sampled(["1", 0]), False),
        (sampled(["2", 0]), False),
        (sampled(SAFE, ["1", 0]), False),
        (sampled(SAFE, ["1", -3]), False),
        (sampled(), False),
        ({"3": {"class_type": "Sampler", "inputs": {"model": ["1", 0]}}}, False),
    ],
    ids=["safe", "lora", "saves a file", "plain", "plain lora", "mixed", "odd slot", "no model", "unconnected"],
)
def test_pictures_claim_a_profile_of_the_graph_only_if_none_gets_around_it(
    server: Any, profile: str, more: dict[str, Any], claimed: bool
) -> None:
    """All pictures of a graph carry the same metadata."""
    sent = copy.deepcopy({**PAINTED, **more})
    sent["safe"]["inputs"]["profile"] = profile
    got = server.protect({"prompt": sent, "extra_data": {"extra_pnginfo": {server.METADATA: "forged"}}})
    told = got["extra_data"]["extra_pnginfo"].get(server.METADATA, [])
    assert [(each["profile"], each["by"]) for each in told] == [(profile, "graph")] * claimed
    assert got["prompt"] == sent


def test_a_graph_may_save_the_profile_that_it_applies(server: Any) -> None:
    """Its first run: the profile is not there yet. Nothing is claimed, and the branch that saves it runs."""
    sent = copy.deepcopy(PAINTED)
    sent["safe"]["inputs"]["profile"] = "studio"
    got = server.protect({"prompt": sent, "extra_data": {"extra_pnginfo": {server.METADATA: "forged"}}})
    assert got == {"prompt": sent, "extra_data": {"extra_pnginfo": {}}}


def test_separate_loaders_get_the_part_that_concerns_them(
    server: Any, nodes: Nodes, graph: dict[str, Any], profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", profile)
    prompt = {"1": {"class_type": "Unet", "inputs": {}}, "2": {"class_type": "Sampler", "inputs": {"model": ["1", 0]}}}
    guard = server.protect({"prompt": prompt})["prompt"]["profile_1_0"]["inputs"]
    assert "clip" not in guard
    digest = guard["digest"]
    safe = nodes.run("ServerProfile", profile=profile, digest=digest, model=graph["model"]).args
    assert {len(p) for p in safe[0].patches.values()} == {2} and safe[1] is None
    text = nodes.run("ServerProfile", profile=profile, digest=digest, clip=graph["clip"]).args
    assert text[0] is None and not text[1].patcher.patches  # these erasures leave the text encoder alone


@pytest.fixture(params=["torch", f"{PACK}.nodes.boundary"])
def alone(
    pack: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, dict[str, Any]]:
    """What the pack makes of a graph where a module cannot be imported, and the nodes that it has then."""
    handlers: list[Any] = []
    instance = SimpleNamespace(add_on_prompt_handler=handlers.append)
    monkeypatch.setitem(sys.modules["server"].__dict__, "PromptServer", SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, request.param, None)
    extension = asyncio.run(importlib.import_module(f"{PACK}.nodes").comfy_entrypoint())
    known = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    (handler,) = handlers
    return handler, known


def test_a_pack_that_cannot_be_loaded_refuses_what_a_default_profile_is_meant_for(
    alone: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, known = alone
    sent = {"prompt": copy.deepcopy(GRAPH), "client_id": "c"}
    assert handler(sent) is sent, "no default profile is set"
    monkeypatch.setenv("CONCEPT_ERASURE_PROFILE", "studio")
    got = handler(sent)
    assert is_refused(got) and got["client_id"] == "c"
    reason = reason_of(got)
    assert "'studio' cannot be applied, for Concept Erasure could not be loaded (ModuleNotFoundError" in reason
    assert known["ConceptErasureRefused"].validate_inputs(reason=reason) == reason


def test_a_pack_that_cannot_be_loaded_reads_the_servers_setting(
    alone: tuple[Any, dict[str, Any]], fake_host: Path
) -> None:
    handler, _ = alone
    path = fake_host / "erasures" / "profiles" / "server.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"default_profile": "studio"}))
    assert "'studio' cannot be applied" in reason_of(handler({"prompt": copy.deepcopy(GRAPH)}))
    path.write_text("{")
    assert "cannot be read" in reason_of(handler({"prompt": copy.deepcopy(GRAPH)}))
