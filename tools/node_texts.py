"""Writes what ComfyUI shows about each node, from the nodes themselves: python -m tools.node_texts

- the table of inputs in every help page web/docs/<node>.md, and the whole page of every Erase node;
- locales/<language>/*.json from the translations in tools/node_texts/<language>.json;
- example_workflows/*.json from tools/example_workflows.py, since workflows store widgets by position.

No ComfyUI is needed: the nodes are loaded on the tests' fake host. A test compares what lies in the folders with what
this would write, so whoever changes a node's inputs or a method's settings runs it once.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS, LOCALES, TEXTS = ROOT / "web" / "docs", ROOT / "locales", Path(__file__).parent / "node_texts"
BEGIN, END = "<!-- inputs: written by python -m tools.node_texts -->", "<!-- end of inputs -->"
LANGUAGES = ("en", "de", "zh", "ja")
PACK = "concept_erasure_pack"
FORMULA = re.compile(r" = |\|\||\^")
COMMAND = "python -m tools.node_texts"
METHOD_PAGE = """# Erase Concept: {title}
{picture}
{about}

Reference: {reference}. Our form of it: {status}.

The node takes the model as it arrives in the graph, LoRAs before it included, and never changes it. It writes one file
to `models/erasures`; its outputs carry the erasure already. The same inputs find that file again, also after a restart,
and a line on the node says so.

{interrupt}

{begin}
{end}

## Pitfalls

- {keeping}
- Any change that affects the result makes another file. Delete those you do not want from `models/erasures`.
- A good score on the words you erased says nothing about words that nobody named: look at pictures of several prompts.
- Inpainting UNets and quantised weights cannot be trained on; erase on the plain model and apply the file there.
"""
INTERRUPT = {
    True: "Interrupt stops within one step; the next run with the same inputs goes on where it stopped.",
    False: "Interrupt stops it, and the next run starts anew.",
}
"""By whether the method trains."""
KEEPING = {
    True: "Without kept prompts, neighbours of the concept suffer most. List what resembles it but must stay.",
    False: "At its default `keep_weight` of 0 this method ignores kept prompts. Raise it where neighbours must stay.",
}
"""By whether the method's defaults keep anything."""


def load_nodes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Node classes by id, and methods by name."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui")]
    import fake_comfy
    import fake_io

    def put(modules: dict[str, Any], name: str, module: Any) -> None:
        modules[name] = module

    fake_comfy.install(Path(tempfile.mkdtemp()), fake_io.module(), put)
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    spec.loader.exec_module(pack)
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    methods = importlib.import_module(f"{PACK}.erasure_core.methods").METHODS
    return {node.define_schema().node_id: node for node in nodes}, methods


def shown_schemas(nodes: dict[str, Any]) -> dict[str, Any]:
    """The schemas of all nodes: those that the server puts in are met in graphs that are opened again."""
    return {node_id: node.define_schema() for node_id, node in nodes.items()}


def table(schema: Any) -> str:
    """The inputs of a node as Markdown."""
    rows = ["## Inputs", "", "| input | | default |", "|---|---|---|"]
    for each in schema.inputs:
        default = "" if each.default in (None, "") else f"`{each.default}`"
        optional = " (optional)" if each.optional else ""
        text = " ".join((getattr(each, "tooltip", None) or "").split()).replace("|", "\\|")
        rows.append(f"| `{each.id}`{optional} | {text} | {default} |")
    return "\n".join(rows)


def about(method: Any) -> str:
    """What a method's own file says of it, up to the first formula: those are in docs/methods.md."""
    said = sys.modules[(method.loss or method.solve).__module__].__doc__ or ""
    said = re.sub(r" \(``\w+``\)", "", said)  # names of modules help nobody here
    return "\n\n".join(takewhile(lambda paragraph: not FORMULA.search(paragraph), said.strip().split("\n\n")))


def method_page(node_id: str, method: Any) -> str:
    picture = f"pictures/{node_id}.jpg"
    return METHOD_PAGE.format(
        title=method.title, about=about(method), reference=method.reference, status=method.status, begin=BEGIN, end=END,
        picture=f"\n![The node]({picture})\n" if (DOCS / picture).is_file() else "",
        interrupt=INTERRUPT[method.loss is not None],
        keeping=KEEPING[getattr(method.settings(), "keep_weight", 1) > 0],
    )  # fmt: skip


def page_texts(nodes: dict[str, Any], methods: dict[str, Any]) -> dict[Path, str]:
    """All help pages. Those of Erase nodes are written whole; of the others the table only, the rest is by hand."""
    pages = {}
    for node_id, schema in shown_schemas(nodes).items():
        path, method = DOCS / f"{node_id}.md", methods.get(node_id.partition("Erase_")[2])
        text = method_page(node_id, method) if method else path.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        pages[path] = f"{before}{BEGIN}\n{table(schema)}\n{END}{rest.partition(END)[2]}"
    return pages


def translated(schema: Any, texts: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """A node's entry in nodeDefs.json. What is not translated stays as the node itself says it."""
    method = methods.get(schema.node_id.partition("Erase_")[2])
    own = texts["nodes"].get(schema.node_id, {})
    title = texts.get("titles", {}).get(method.name, method.title) if method else ""
    name = own.get("display_name") or (texts["erase"].format(title) if method else schema.display_name)
    inputs = {}
    for each in schema.inputs:
        shared = texts["inputs"].get(each.id, (each.id, getattr(each, "tooltip", None)))
        label, tooltip = texts["inputs"].get(f"{schema.node_id}.{each.id}", shared)
        inputs[each.id] = {"name": label, **({"tooltip": tooltip} if tooltip else {})}
    outputs = {
        str(i): {"name": texts["outputs"].get(each.display_name, each.display_name)}
        for i, each in enumerate(schema.outputs)
    }
    description = own.get("description", schema.description)
    if method and "erase_description" in texts:
        status = texts["statuses"].get(method.status, method.status)
        description = texts["erase_description"].format(reference=method.reference, status=status)
    made = {"display_name": name, "description": description, "inputs": inputs}
    return {**made, **({"outputs": outputs} if outputs else {})}


def locale_texts(nodes: dict[str, Any], methods: dict[str, Any]) -> dict[Path, str]:
    """All files below locales/ that are about nodes."""
    files = {}
    for language in LANGUAGES:
        texts = json.loads((TEXTS / f"{language}.json").read_text(encoding="utf-8"))
        schemas = shown_schemas(nodes).items()
        entries = {node_id: translated(schema, texts, methods) for node_id, schema in schemas}
        categories = {"nodeCategories": {"concept erasure": texts["category"]}}
        for name, content in (("nodeDefs", entries), ("main", categories)):
            text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
            files[LOCALES / language / f"{name}.json"] = text + "\n"
    return files


def main() -> None:
    nodes, methods = load_nodes()
    from tools import example_workflows

    workflows = example_workflows.texts(shown_schemas(nodes))
    for path, text in {**page_texts(nodes, methods), **locale_texts(nodes, methods), **workflows}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
