"""What ComfyUI shows of each node: help pages, translations and example workflows are those of the nodes as they are.

Settings come from the methods, so a change there makes these files stale; each message says the command that cures it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from pack_nodes import PACK, WIDGETS, Nodes

from erasure_core.boundary.searches import LEVELS
from erasure_core.methods import RECOMMENDED

DOCS = ROOT / "web" / "docs"


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tool() -> Any:
    return loaded("node_texts")


@pytest.fixture
def methods(nodes: Nodes) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(f"{PACK}.erasure_core.methods").METHODS
    return found


def test_every_node_has_a_help_page_as_the_node_is_now(nodes: Nodes, methods: dict[str, Any], tool: Any) -> None:
    pages = tool.page_texts(nodes.all, methods)
    assert set(pages) == set(DOCS.glob("*.md"))
    assert {f"ConceptErasureErase_{name}" for name in methods} <= {page.stem for page in pages}
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is stale: run {tool.COMMAND}"
        assert "## Pitfalls" in text and "## Inputs" in text


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_help_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (DOCS / link.partition("#")[0]).is_file()]
    assert not missing


def test_the_help_of_a_method_is_what_its_file_says(methods: dict[str, Any], tool: Any) -> None:
    for method in methods.values():
        text = tool.about(method)
        assert text and not tool.FORMULA.search(text) and text in tool.method_page("ConceptErasureErase_x", method)


def test_a_stale_page_is_noticed(nodes: Nodes, methods: dict[str, Any], tool: Any) -> None:
    """An input that a page does not know yet, as a method's file may add one."""
    node = nodes.all["ConceptErasureErase_esd"]
    schema = node.define_schema()
    schema.inputs[0].tooltip = "A new meaning."
    changed = type("Changed", (), {"define_schema": staticmethod(lambda: schema)})
    pages = tool.page_texts({**nodes.all, "ConceptErasureErase_esd": changed}, methods)
    page = DOCS / "ConceptErasureErase_esd.md"
    assert "A new meaning." in pages[page] and "A new meaning." not in page.read_text(encoding="utf-8")


def test_every_node_is_translated_as_it_is_now(nodes: Nodes, methods: dict[str, Any], tool: Any) -> None:
    files = tool.locale_texts(nodes.all, methods)
    assert {path.parent.name for path in files} == {"en", "de", "zh", "ja"}
    for path, text in files.items():
        place = path.relative_to(ROOT)
        assert path.is_file() and path.read_text(encoding="utf-8") == text, f"{place} is stale: run {tool.COMMAND}"


@pytest.mark.parametrize("language", ["de", "zh", "ja"])
def test_translations_are_of_inputs_that_exist(nodes: Nodes, tool: Any, language: str) -> None:
    """A setting that is renamed leaves its translation behind."""
    texts = json.loads((tool.TEXTS / f"{language}.json").read_text(encoding="utf-8"))
    schemas = tool.shown_schemas(nodes.all)
    ids = {each.id for schema in schemas.values() for each in schema.inputs}
    ids |= {f"{node_id}.{each.id}" for node_id, schema in schemas.items() for each in schema.inputs}
    left = set(texts["titles"]) - {node_id.partition("Erase_")[2] for node_id in schemas}
    left |= set(texts["nodes"]) - set(schemas) | set(texts["inputs"]) - ids
    assert not left, f"remove or rename these in tools/node_texts/{language}.json"


@pytest.mark.parametrize("language", ["de", "zh", "ja"])
def test_nothing_of_a_node_is_left_in_english(nodes: Nodes, methods: dict[str, Any], tool: Any, language: str) -> None:
    """What a language lacks would be shown in English without a word."""
    texts = json.loads((tool.TEXTS / f"{language}.json").read_text(encoding="utf-8"))
    missing = [method.status for method in methods.values() if method.status not in texts["statuses"]]
    missing += [
        f"title of {name}" for name, method in methods.items() if texts["titles"].get(name, "") in ("", method.title)
    ]
    missing += [node_id for node_id, own in texts["nodes"].items() if not own.get("display_name")]
    for node_id, schema in tool.shown_schemas(nodes.all).items():
        if node_id.partition("Erase_")[2] not in methods and not texts["nodes"].get(node_id, {}).get("description"):
            missing.append(node_id)
        for each in schema.inputs:
            own = texts["inputs"].get(f"{node_id}.{each.id}", texts["inputs"].get(each.id, ["", ""]))
            missing += [] if all(own) else [f"{node_id}.{each.id}"]
        missing += [each.display_name for each in schema.outputs if each.display_name not in texts["outputs"]]
    assert not missing, f"translate these in tools/node_texts/{language}.json and run {tool.COMMAND}"


def test_the_front_end_says_the_same_in_every_language() -> None:
    """What a language lacks would be shown in English without a word."""
    text = (ROOT / "web" / "strings.js").read_text(encoding="utf-8")
    blocks = re.findall(r"^  (\w\w): \{\n(.*?)^  \},$", text, re.MULTILINE | re.DOTALL)
    keys = {language: re.findall(r"^    (\w+|\"[^\"]+\"): \"", block, re.MULTILINE) for language, block in blocks}
    assert list(keys) == ["en", "de", "zh", "ja"] and keys["en"]
    assert all(found == keys["en"] for found in keys.values())
    assert all(f'"stage {stage}"' in keys["en"] for stage in stages_of_an_erasure())


def stages_of_an_erasure() -> set[str]:
    """What an Erase node says that it is doing: the stages of the core's reports, and the searches of hardening."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "erasure_core").rglob("*.py")]
    said = {stage for source in sources for stage in re.findall(r"Report\(\"([^\"]+)\"", source)}
    assert {"training", "trajectories"} <= said
    return said | set(LEVELS)


def test_the_guide_quotes_what_is_really_said() -> None:
    """Who searches it for a message finds it only by the message's own words."""
    guide = (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8")
    symptoms = re.findall(
        r"^\| ([^|]+) \|", guide.partition("## Troubleshooting")[2].partition("\n## ")[0], re.MULTILINE
    )
    said = [
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in getattr(text, "values", [text]))
        for folder in ("nodes", "erasure_core")
        for path in (ROOT / folder).rglob("*.py")
        for text in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(text, ast.JoinedStr) or (isinstance(text, ast.Constant) and isinstance(text.value, str))
    ]
    quotes = [quote for symptom in symptoms for quote in re.findall(r'"([^"]+)"', symptom)]
    assert len(quotes) > 8 and not [quote for quote in quotes if not any(quote in text for text in said)]


def test_pictures_show_the_nodes_as_they_are_now(nodes: Nodes, tool: Any) -> None:
    """A picture does not say what it shows; beside the tool that makes all of them lies what it was then."""
    pictures = loaded("node_pictures")
    found = json.loads(pictures.text(pictures.shown(tool.shown_schemas(nodes.all))))
    then = json.loads(pictures.SHOWN.read_text(encoding="utf-8"))
    stale = [node_id for node_id in {**found, **then} if found.get(node_id) != then.get(node_id)]
    assert not stale, f"the pictures of {', '.join(stale)} are stale: run {pictures.COMMAND} with a real ComfyUI"
    assert {path.stem for path in (DOCS / "pictures").glob("*.jpg")} == set(found)
    for node_id in found:
        page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
        assert f"](pictures/{node_id}.jpg)" in page, f"{node_id}.md does not show its picture"


def test_a_stale_picture_is_noticed(nodes: Nodes, tool: Any) -> None:
    """A default that is changed, a setting that is no longer folded away, an input that is new."""
    pictures = loaded("node_pictures")
    schema = nodes.all["ConceptErasureErase_auto"].define_schema()
    seen = [pictures.shown({"Erase": schema})["Erase"]]
    next(each for each in schema.inputs if each.id == "steps").default += 1
    seen.append(pictures.shown({"Erase": schema})["Erase"])
    next(each for each in schema.inputs if each.extra_dict.get("advanced")).extra_dict.clear()
    seen.append(pictures.shown({"Erase": schema})["Erase"])
    schema.inputs.append(nodes.all["ConceptErasureLoad"].define_schema().inputs[-1])
    seen.append(pictures.shown({"Erase": schema})["Erase"])
    assert all(one != other for one, other in itertools.pairwise(seen))


def test_example_workflows_are_of_the_nodes_as_they_are_now(nodes: Nodes, tool: Any) -> None:
    """A workflow stores widgets by position: with one setting more, every value behind it is another's."""
    files = loaded("example_workflows").texts(tool.shown_schemas(nodes.all))
    assert len(files) >= 4 and set(files) == set((ROOT / "example_workflows").glob("*.json"))
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run {tool.COMMAND}"
        assert path.with_suffix(".jpg").is_file()
        for node in json.loads(text)["nodes"]:
            if node["type"] in nodes.all:
                schema = nodes.all[node["type"]].define_schema()
                assert len(node["widgets_values"]) == sum(each.io_type in WIDGETS for each in schema.inputs)


def test_a_template_uses_the_recommended_method_and_others_say_where_their_files_come_from(
    nodes: Nodes, tool: Any
) -> None:
    texts = loaded("example_workflows").texts(tool.shown_schemas(nodes.all))
    graphs = {path.stem: json.loads(text)["nodes"] for path, text in texts.items()}
    using = {
        name for name, graph in graphs.items() if f"ConceptErasureErase_{RECOMMENDED}" in {n["type"] for n in graph}
    }
    assert using
    loading = {name for name, graph in graphs.items() if any(n["type"] == "ConceptErasureLoad" for n in graph)}
    assert loading == {"apply_a_stack", "safety_profile"}
    for name in loading:
        (note,) = (node["widgets_values"][0] for node in graphs[name] if node["type"] == "Note")
        assert any(template in note for template in using) and "models/erasures" in note
