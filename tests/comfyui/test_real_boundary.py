"""Exploring, the report card, hardening and purifying in a real ComfyUI. Skipped where COMFYUI_PATH names none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from comfy_client import GraphFailed, Graphs, Host, picture_of

LINKS: dict[str, Any] = {"model": ["base", 0], "clip": ["base", 1]}
QUICK: dict[str, Any] = {"seconds": 60, "states": 4, "resolution": 64}


@pytest.fixture(scope="module")
def graphs(host: Host) -> Graphs:
    return Graphs(host)


def weights_show_as(host: Host, graphs: Graphs) -> str:
    """What the untouched model paints: the same picture only with the same weights."""
    return host.picture_hash(picture_of(host.run(graphs.paint())))


def exploring(graphs: Graphs, **how: Any) -> dict[str, Any]:
    links = {**LINKS, "concept": ["concept", 0], "erasure": ["erase", 2], "look": 4}
    explore = graphs.node("Explore", **{**links, **QUICK, "searches": "words", **how})
    return {
        "base": graphs.paint()["base"],
        **graphs.erase("closed_form"),
        "explore": explore,
        "map": graphs.node("BoundaryMap", boundary=["explore", 0], selected="bouncy sphere"),
    }


def test_exploring_leads_to_a_map_and_a_wider_concept(host: Host, graphs: Graphs) -> None:
    before = weights_show_as(host, graphs)
    graph = exploring(graphs)
    graph["again"] = graphs.node("Erase_closed_form", **LINKS, concept=["map", 0], resolution=64)
    graph["sure"] = graphs.node("Inspect", erasure=["again", 2])
    outputs = host.run(graph)
    text = outputs["explore"]["text"][0]
    assert "in the erased model" in text and "misspelling:" in text and "not a proof" in text
    page = host.picture_bytes(outputs["map"]["boundary_map"][0]).decode()
    assert "Content-Security-Policy" in page and '"words": ["ball"]' in page
    assert "erased: ball, bouncy sphere" in outputs["sure"]["text"][0]
    assert weights_show_as(host, graphs) == before


def test_interrupting_keeps_weights_and_hands_on_nothing(host: Host, graphs: Graphs) -> None:
    before = weights_show_as(host, graphs)
    events = host.listen()
    queued = host.queue(exploring(graphs, seconds=400, seed=3), client_id=events.client_id)
    share = highest = 0.0
    for message in events:
        data = message.get("data", {})
        if message["type"] == "progress" and data.get("node") == "explore":
            highest, share = max(highest, share), data["value"] / data["max"]
            if 0 < share < highest:  # the bar began anew: what was prepared before is no find yet
                break
    host.interrupt()
    events.close()
    with pytest.raises(GraphFailed, match="interrupted"):
        host.wait(queued)
    found = [json.loads(p.read_text()) for p in (host.base / "output/concept_erasure").glob("*/exploration.json")]
    stopped = [one for one in found if one["stopped"]]
    assert len(stopped) == 1 and stopped[0]["points"]
    assert weights_show_as(host, graphs) == before


def test_the_guard_is_reached(host: Host, graphs: Graphs) -> None:
    forbidden = exploring(graphs)
    forbidden["concept"] = graphs.node("Concept", words="naked child")
    with pytest.raises(GraphFailed, match="does not search for sexual content about minors"):
        host.run(forbidden)


def test_a_model_that_carries_the_erasure_is_refused(host: Host, graphs: Graphs) -> None:
    with pytest.raises(GraphFailed, match="would count twice"):
        host.run(exploring(graphs, model=["erase", 0], clip=["erase", 1]))


def test_a_report_card(host: Host, graphs: Graphs) -> None:
    # Of other tests on this host: no figures are written into a file that a profile pins.
    for profile in (host.base / "models/erasures/profiles").glob("*"):
        profile.unlink()
    links = {**LINKS, "concept": ["concept", 0], "erasure": ["erase", 2], "vae": ["base", 2]}
    graph = {
        "base": graphs.paint()["base"],
        **graphs.erase("closed_form"),
        "report": graphs.node("Report", **{**links, **QUICK, "seconds": 8, "write_into_file": True}),
        "show": {"class_type": "SaveImage", "inputs": {"images": ["report", 0], "filename_prefix": "card"}},
        "look": graphs.node("Inspect", erasure=["erase", 2]),
    }
    outputs = host.run(graph)
    page = host.picture_bytes(outputs["report"]["report_card"][0]).decode()
    assert "data:image/png" in page and "Does not withstand an attacker" in outputs["report"]["text"][0]
    assert picture_of(outputs, "show")["filename"].startswith("card")
    file = outputs["look"]["erasure"][0]["file"]  # the Erase node may be cached, and say nothing
    assert "report_card" in host.get(f"/concept_erasure/erasure?name={file}")["measured"]


def test_hardening_is_told_and_its_file_found_again(host: Host, graphs: Graphs) -> None:
    before = weights_show_as(host, graphs)
    graph = {**graphs.paint("erase"), **graphs.erase("closed_form", harden=1, harden_seconds=10)}
    first = host.run(graph)["erase"]["erasure"][0]
    assert "Searched 1 times" in first["hardened"] and not first["reused"]
    host.run(graphs.paint(seed=3))
    graph["paint"]["inputs"]["seed"] = 4
    again = host.run(graph)["erase"]["erasure"][0]
    assert again["reused"] and again["file"] == first["file"] and again["hardened"] == first["hardened"]
    assert weights_show_as(host, graphs) == before


def test_purifying(host: Host, graphs: Graphs) -> None:
    purify = {
        "purify": graphs.node(
            "Purify", **LINKS, vae=["base", 2], image=["see", 0], caption="a red ball", erasure=["erase", 2],
            steps=4, resolution=64,
        ),
        "show": {"class_type": "SaveImage", "inputs": {"images": ["purify", 0], "filename_prefix": "pure"}},
    }  # fmt: skip
    outputs = host.run({**graphs.paint(), **graphs.erase("closed_form"), **purify})
    shown, original = (host.picture_hash(picture_of(outputs, node)) for node in ("show", "save"))
    assert shown != original
