"""AUTOMATIC1111's entry: the host executes this file, and nothing else by itself, at every load of its scripts."""

from concept_erasure_webui import hooks
from concept_erasure_webui.panel import ConceptErasureScript

__all__ = ["ConceptErasureScript"]

hooks.register()
