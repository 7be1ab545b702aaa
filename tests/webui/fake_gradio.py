"""gradio without gradio: components that remember what they were made with, and events that can be fired by hand.

Made in the shape that 3.41 and 4.40 share; an argument that only one of them knows does not exist here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

COMMON = {"label", "info", "elem_id", "visible", "value"}
ARGUMENTS = {
    "Textbox": COMMON | {"lines"},
    "Dropdown": COMMON | {"choices", "multiselect"},
    "CheckboxGroup": COMMON | {"choices"},
    "Checkbox": COMMON,
    "Number": COMMON,
    "Slider": COMMON | {"step"},
    "HTML": {"value", "elem_id", "visible"},
    "Button": {"value", "elem_id", "visible", "variant", "scale", "size"},
    "Image": {"label", "type", "elem_id"},
    "Gallery": {"label", "elem_id"},
    "File": {"label", "elem_id", "file_count", "file_types"},
    "Row": {"elem_id"},
    "Column": {"elem_id", "visible"},
    "Accordion": {"open", "elem_id"},
    "Tabs": {"elem_id"},
    "TabItem": {"elem_id"},
    "Blocks": {"analytics_enabled"},
}
EVENT = {"inputs", "outputs", "_js", "show_progress"}


class Component:
    """Any widget or container; ``events`` are those of the whole page, in order."""

    def __init__(self, page: Page, kind: str, *values: Any, **given: Any) -> None:
        strange = set(given) - ARGUMENTS[kind]
        assert not strange, f"{kind} has no argument {strange}"
        self.page, self.kind, self.given = page, kind, given
        self.positional = values
        page.components.append(self)

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def _event(self, work: Callable[..., Any], inputs: Any = None, outputs: Any = None, **given: Any) -> Component:
        assert set(given) <= EVENT, given
        self.page.events.append((self, work, list(inputs or []), list(outputs or []), given.get("_js")))
        return self

    click = change = select = then = load = _event


class Page(types.ModuleType):
    """The module; keeps what was built with it. Panels are built on a page of the host's."""

    def __init__(self) -> None:
        super().__init__("gradio")
        self.components: list[Component] = []
        self.events: list[tuple[Component, Callable[..., Any], list[Component], list[Component], str | None]] = []
        # What a panel is built on, which is the host's.
        self.context = types.SimpleNamespace(Context=types.SimpleNamespace(root_block=self.Blocks()))
        self.components.clear()

    def __getattr__(self, kind: str) -> Any:
        if kind not in ARGUMENTS:
            raise AttributeError(kind)
        return lambda *values, **given: Component(self, kind, *values, **given)

    @staticmethod
    def update(**given: Any) -> dict[str, Any]:
        return given

    def of(self, elem_id: str) -> Component:
        return next(c for c in self.components if c.given.get("elem_id") == f"concept_erasure_{elem_id}")
