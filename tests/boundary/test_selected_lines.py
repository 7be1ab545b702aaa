"""What is selected on the map in the web UI's tab goes into a field; what somebody typed there stays."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "javascript" / "concept_erasure.js"
HARNESS = """
const field = { value: "typed\\n" }, inside = {}, listeners = [], seen = [];
globalThis.gradioApp = () => ({ querySelector: name => name.includes("iframe") ? { contentWindow: inside } : field });
globalThis.updateInput = () => seen.push(field.value.split("\\n"));
globalThis.onUiUpdate = () => {};
globalThis.window = { addEventListener: (kind, listener) => listeners.push(listener) };
require("vm").runInThisContext(require("fs").readFileSync(process.argv[1], "utf8"));
const select = words => listeners[0]({ source: inside, data: { conceptErasureSelection: words } });
select(["orb", "a  round\\nthing"]);
field.value += "\\ntyped later";
select(["orb"]);
select([]);
listeners[0]({ source: {}, data: { conceptErasureSelection: ["a stranger's"] } });
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_typed_lines_stay() -> None:
    ran = subprocess.run(["node", "-e", HARNESS, str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [
        ["typed", "orb", "a round thing"],
        ["typed", "typed later", "orb"],
        ["typed", "typed later"],
    ]
