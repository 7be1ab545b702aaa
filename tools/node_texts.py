"""Writes what ComfyUI shows about each node, from the nodes themselves: python tools/node_texts.py

- the table of inputs in every help page web/docs/<node>.md, and a whole page for a method that has none yet;
- locales/<language>/nodeDefs.json from the translations in tools/node_texts/<language>.json.

No ComfyUI is needed: the nodes are loaded on the tests' fake host.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS, LOCALES, TEXTS = ROOT / "web" / "docs", ROOT / "locales", Path(__file__).parent / "node_texts"
BEGIN, END = "<!-- inputs: written by tools/node_texts.py -->", "<!-- end of inputs -->"
LANGUAGES = ("en", "de", "zh", "ja")
PACK = "concept_erasure_pack"
METHOD_PAGE = """# Erase Concept: {title}

![The node]({picture})

{about}

{reference}. Our form of it: {status}.

The node takes the model as it arrives in the graph, LoRAs before it included, and never changes it. It writes one file
to `models/erasures`; its outputs carry the erasure already. The same inputs find that file again, also after a restart,
and a line on the node says so. Interrupt stops within one step; the next run with the same inputs goes on where it
stopped.

{begin}
{end}

## Pitfalls

- Without kept prompts, neighbours of the concept suffer most. List what resembles it but must stay.
- Any change of an input makes another file. Delete files you do not want in `models/erasures`.
- A better score on the words you erased says nothing of words nobody named; look at the pictures of several prompts.
- Inpainting UNets and quantised weights cannot be trained on; erase on the plain model and apply the file there.
"""


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
    shown = {node.define_schema().node_id: node for node in nodes}
    return {name: node for name, node in shown.items() if "internal" not in node.define_schema().category}, methods


def table(schema: Any) -> str:
    """The inputs of a node as Markdown."""
    rows = ["## Inputs", "", "| input | | default |", "|---|---|---|"]
    for each in schema.inputs:
        default = "" if each.default in (None, "") else f"`{each.default}`"
        optional = " (optional)" if each.optional else ""
        text = " ".join((getattr(each, "tooltip", None) or "").split()).replace("|", "\\|")
        rows.append(f"| `{each.id}`{optional} | {text} | {default} |")
    return "\n".join(rows)


def new_page(node_id: str, methods: dict[str, Any]) -> str:
    method = methods[node_id.partition("Erase_")[2]]
    about = (sys.modules[(method.loss or method.solve).__module__].__doc__ or "").split("\n\n")[0]
    return METHOD_PAGE.format(
        title=method.title, about=about, reference=method.reference, status=method.status,
        picture=f"pictures/{node_id}.jpg", begin=BEGIN, end=END,
    )  # fmt: skip


def write_pages(nodes: dict[str, Any], methods: dict[str, Any]) -> None:
    for node_id, node in nodes.items():
        page = DOCS / f"{node_id}.md"
        text = page.read_text(encoding="utf-8") if page.is_file() else new_page(node_id, methods)
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n{table(node.define_schema())}\n{END}{after}", encoding="utf-8")


def translated(schema: Any, texts: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """A node's entry in nodeDefs.json. What is not translated stays as the node itself says it."""
    method = methods.get(schema.node_id.partition("Erase_")[2])
    own = texts["nodes"].get(schema.node_id, {})
    name = own.get("display_name") or (texts["erase"].format(method.title) if method else schema.display_name)
    inputs = {}
    for each in schema.inputs:
        shared = texts["inputs"].get(each.id, (each.id, getattr(each, "tooltip", None)))
        label, tooltip = texts["inputs"].get(f"{schema.node_id}.{each.id}", shared)
        inputs[each.id] = {"name": label, **({"tooltip": tooltip} if tooltip else {})}
    outputs = {
        str(i): {"name": texts["outputs"].get(each.display_name, each.display_name)}
        for i, each in enumerate(schema.outputs)
    }
    made = {"display_name": name, "description": own.get("description", schema.description), "inputs": inputs}
    return {**made, **({"outputs": outputs} if outputs else {})}


def write_locales(nodes: dict[str, Any], methods: dict[str, Any]) -> None:
    for language in LANGUAGES:
        texts = json.loads((TEXTS / f"{language}.json").read_text(encoding="utf-8"))
        folder = LOCALES / language
        folder.mkdir(parents=True, exist_ok=True)
        entries = {node_id: translated(node.define_schema(), texts, methods) for node_id, node in nodes.items()}
        categories = {"nodeCategories": {"concept erasure": texts["category"]}}
        for name, content in (("nodeDefs", entries), ("main", categories)):
            text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    nodes, methods = load_nodes()
    write_pages(nodes, methods)
    write_locales(nodes, methods)


if __name__ == "__main__":
    main()
