"""Routes under ``/concept-erasure/v1``, with ``--api`` only and behind the same passwords as the host's own.

Reading is GET, everything else POST with a JSON body. To apply erasures use the host's ``alwayson_scripts`` or the tag.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import call_queue, shared

from erasure_core.concept import Concept
from erasure_core.errors import ErasureError, InvalidSettings
from erasure_core.methods import METHODS, find_method

from . import jobs, places

ROOT = "/concept-erasure/v1"


def passwords() -> dict[str, str]:
    """Users and passwords of this web UI: those of its API, else those of its pages."""
    given: Any = shared.cmd_opts
    text = getattr(given, "api_auth", None) or ""
    if not text:
        text = getattr(given, "gradio_auth", None) or ""
        path = getattr(given, "gradio_auth_path", None)
        if path:
            text += "," + Path(path).read_text(encoding="utf-8").replace("\n", ",")
    pairs = (part.strip().partition(":") for part in text.split(",") if ":" in part)
    return {user: password for user, _, password in pairs}


def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic(auto_error=False))) -> None:  # noqa: B008
    """Raises:
    HTTPException: 401 without the right user and password, where the web UI has some.
    """
    known = passwords()
    if not known:
        return
    expected = known.get(credentials.username, "") if credentials else ""
    given = credentials.password if credentials else ""
    if not expected or not secrets.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})


def register(_: Any, app: FastAPI) -> None:
    """For ``on_app_started``."""
    if not getattr(shared.cmd_opts, "api", False) and not getattr(shared.cmd_opts, "nowebui", False):
        return
    guard = [Depends(check)]
    app.add_api_route(f"{ROOT}/erasures", erasures, methods=["GET"], dependencies=guard)
    app.add_api_route(f"{ROOT}/methods", methods, methods=["GET"], dependencies=guard)
    app.add_api_route(f"{ROOT}/last-job", last_job, methods=["GET"], dependencies=guard)
    app.add_api_route(f"{ROOT}/erase", erase, methods=["POST"], dependencies=guard)
    app.add_api_route(f"{ROOT}/interrupt", interrupt, methods=["POST"], dependencies=guard)


def erasures() -> list[dict[str, Any]]:
    """All erasures with their manifests."""
    entries = map(places.library().entry, places.library().names())
    return [
        {"name": e.name, "problem": e.problem, "manifest": asdict(e.manifest) if e.manifest else None} for e in entries
    ]


def methods() -> list[dict[str, Any]]:
    """All methods with the default settings."""
    return [
        {
            "name": m.name,
            "title": m.title,
            "reference": m.reference,
            "status": m.status,
            "settings": asdict(m.settings()),
        }
        for m in METHODS.values()
    ]


def last_job() -> dict[str, Any] | None:
    found = jobs.JOBS.shown()
    return None if found is None else {k: v for k, v in asdict(found).items() if k != "output"}


def erase(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Erase a concept; answers when it is done. Fields: words, alternative, keep, method, settings, side (pixels)."""
    try:
        request = _request(body)
    except (ErasureError, TypeError, ValueError) as error:
        raise HTTPException(422, str(error)) from error
    with call_queue.queue_lock:
        shared.state.begin(job="concept_erasure")
        try:
            job = jobs.run_erase(request)
        finally:
            shared.state.end()
    if job.status == "failed":
        raise HTTPException(409, job.message)
    return {"status": job.status, "file": job.file, "message": job.message, "seconds": job.seconds}


def _request(body: dict[str, Any]) -> jobs.Request:
    unknown = set(body) - {"words", "alternative", "keep", "method", "settings", "side"}
    if unknown:
        raise InvalidSettings(f"{sorted(unknown)[0]!r} is not a field of this request.")
    words, keep = body.get("words"), body.get("keep", [])
    if not _is_texts(words) or not _is_texts(keep):
        raise InvalidSettings("words and keep are lists of texts.")
    method = find_method(str(body.get("method", "closed_form")))
    concept = Concept(tuple(words or ()), body.get("alternative"), tuple(keep))
    side = body.get("side")
    return jobs.Request(concept, method, method.settings(**body.get("settings", {})), int(side) // 8 if side else None)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def interrupt() -> dict[str, str]:
    """Stop the running work after its present step; what is done so far is kept."""
    shared.state.interrupt()
    return {"status": "asked to stop"}
