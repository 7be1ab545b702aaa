"""AUTOMATIC1111's entry: the host executes this file, and nothing else by itself, at every load of its scripts."""

from concept_erasure_webui import refusal

__all__ = ["ConceptErasureScript"]

try:
    from concept_erasure_webui import hooks
    from concept_erasure_webui.panel import ConceptErasureScript

    hooks.register()
except Exception:  # the host would go on without us, whatever should be erased
    ConceptErasureScript = refusal.stand_in()
