"""All that the host is told when it loads the extension."""

from __future__ import annotations

from modules import script_callbacks

from . import gate, panel, routes, settings, tab, xyz


def register() -> None:
    """Called at every load of the scripts: the host has dropped the callbacks of the load before."""
    # Not on_ui_settings: the host does not call that when it only serves the API.
    script_callbacks.on_before_ui(settings.register)
    script_callbacks.on_before_ui(gate.register)
    script_callbacks.on_before_ui(xyz.register)
    script_callbacks.on_ui_tabs(tab.tabs)
    script_callbacks.on_app_started(routes.register)
    script_callbacks.on_cfg_denoiser(gate.check_step)
    script_callbacks.on_infotext_pasted(panel.paste_rest)
    script_callbacks.on_model_loaded(gate.model_loaded)
    script_callbacks.on_script_unloaded(gate.leave)
