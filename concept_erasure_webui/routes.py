"""Routes under ``/concept-erasure/v1``, with ``--api`` only and behind the same passwords as the host's own.

Reading is GET, everything else POST with a JSON body. To apply erasures use the host's ``alwayson_scripts`` or the tag.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import call_queue, shared

from erasure_core.boundary import ExploreSettings
from erasure_core.boundary.report import ReportSettings
from erasure_core.boundary.subject import GUIDANCE
from erasure_core.concept import Concept
from erasure_core.effort import EFFORTS, effort_of
from erasure_core.errors import ErasureError, InvalidSettings
from erasure_core.library import SUFFIX
from erasure_core.making import Hardening
from erasure_core.methods import METHODS, RECOMMENDED, Method, SolverSettings, find_method
from erasure_core.presets import preset_settings

from . import exploring, given_pictures, jobs, places, reporting, saved
from .bodies import Body as Fields
from .exploring import Search
from .reporting import Measurement
from .wishes import Wish
from .working import Job, latent_side

ROOT = "/concept-erasure/v1"
MOST_TOLD = 1000
"""Characters of the reason that an answer gives."""


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
    app.add_api_route(f"{ROOT}/explore", explore, methods=["POST"], dependencies=guard)
    app.add_api_route(f"{ROOT}/report", report, methods=["POST"], dependencies=guard)
    app.add_api_route(f"{ROOT}/explorations", explorations, methods=["GET"], dependencies=guard)
    app.add_api_route(f"{ROOT}/explorations/{{name}}", exploration, methods=["GET"], dependencies=guard)
    app.add_api_route(f"{ROOT}/reports", reports, methods=["GET"], dependencies=guard)
    app.add_api_route(f"{ROOT}/reports/{{name}}", report_card, methods=["GET"], dependencies=guard)
    app.add_api_route(f"{ROOT}/interrupt", interrupt, methods=["POST"], dependencies=guard)


def erasures() -> list[dict[str, Any]]:
    """All erasures with their manifests."""
    entries = map(places.library().entry, places.library().names())
    return [
        {"name": e.name, "problem": places.told(e.problem), "manifest": asdict(e.manifest) if e.manifest else None}
        for e in entries
    ]


def methods() -> list[dict[str, Any]]:
    """All methods with the default settings, and the efforts that they can be told to take; none where they solve at
    once."""
    return [
        {
            "name": m.name,
            "title": m.title,
            "reference": m.reference,
            "status": m.status,
            "settings": asdict(m.settings()),
            "efforts": list(EFFORTS) if m.solve is None else [],
        }
        for m in METHODS.values()
    ]


def last_job() -> dict[str, Any] | None:
    found = jobs.JOBS.shown()
    return (
        None if found is None else {k: v for k, v in asdict(found).items() if k not in ("output", "picture", "painted")}
    )


T = TypeVar("T")


def _asked(read: Callable[[dict[str, Any]], T], body: dict[str, Any]) -> T:
    """What a body asks for.

    Raises:
        HTTPException: 422 with the reason, if it cannot be read.
    """
    try:
        return read(body)
    except ErasureError as error:
        told = places.told(error)
        # Messages of the library repeat what was sent.
        raise HTTPException(422, told if len(told) <= MOST_TOLD else f"{told[:MOST_TOLD]}…") from error


def _in_turn(work: Callable[[], T]) -> T:
    """Do work on the model when the web UI has finished what others asked for before."""
    with call_queue.queue_lock:
        shared.state.begin(job="concept_erasure")
        try:
            return work()
        finally:
            shared.state.end()


def _answer(job: Job) -> dict[str, Any]:
    """Raises:
    HTTPException: 409 with the reason, if the work failed.
    """
    if job.status == "failed":
        raise HTTPException(409, job.message)
    return {"status": job.status, "file": job.file, "message": job.message, "seconds": job.seconds}


def erase(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Erase a concept; answers when it is done. Fields: words, alternative, keep, method, settings, side (pixels),
    harden (rounds), harden_seconds, harden_guidance, preset, effort, pictures (base64, never paths), name (of the
    file)."""
    request = _asked(_erasing, body)
    return _answer(_in_turn(lambda: jobs.run_erase(request)))


def _erasing(body: dict[str, Any]) -> jobs.Request:
    known = {"words", "alternative", "keep", "method", "settings", "side", "harden", "preset", "pictures"}
    asked = Fields(body, known | {"harden_seconds", "harden_guidance", "name", "effort"})
    named = asked.name("method")
    method = find_method(RECOMMENDED if named is None else named)
    concept = Concept(asked.texts("words"), asked.text("alternative"), asked.texts("keep"))
    settings = _method_settings(method, body.get("settings", {}), asked.name("preset"))
    effort = effort_of(asked.name("effort"), method, body.get("settings", {}))
    rounds = asked.whole("harden", 0)
    seconds, guidance = asked.number("harden_seconds", 60), asked.number("harden_guidance", GUIDANCE)
    search = ExploreSettings(seconds=seconds, guidance=guidance, seed=settings.seed)
    hardening = Hardening(rounds, search) if rounds else None
    pictures = given_pictures.from_base64(asked.texts("pictures"))
    name = asked.name("name") or ""
    return jobs.Request(concept, method, settings, _side(asked), hardening, pictures=pictures, name=name, effort=effort)


def _method_settings(method: Method, given: object, preset: str | None) -> SolverSettings:
    names = [setting.name for setting in fields(method.settings)]
    implied = {} if preset is None else preset_settings(preset, method)
    return method.settings(**implied | Fields(given, names, f"settings of {method.name}").values(names))


def _side(asked: Fields) -> int | None:
    """Of the latents; nothing for the family's own."""
    return None if asked.given.get("side") is None else latent_side(asked.number("side", 0))


def explore(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Search for prompts that reach a concept; answers when it is done. Fields: words, keep, try, erasure, strength,
    side, and the settings of a search: seconds, calls, levels, states, guidance, look, pictures, seed, sensitive."""
    search = _asked(_search, body)
    job, found = _in_turn(lambda: (exploring.run_explore(search), exploring.FINDINGS.found))
    answer = _answer(job)
    if found is None:
        raise HTTPException(409, job.message)
    return answer | {"summary": found.summary(), "leaking": found.leaking_words(), "tried": len(found.points)}


def _search(body: dict[str, Any]) -> Search:
    own = {"seconds", "calls", "levels", "states", "guidance", "look", "pictures", "seed", "sensitive"}
    asked = Fields(body, own | {"words", "keep", "try", "erasure", "strength", "side"})
    settings = asked.values(own)
    if settings.get("calls") is not None:
        settings.setdefault("seconds", None)
    wish = _wish(asked) if asked.name("erasure") else None
    return Search(
        asked.texts("words"), asked.texts("keep"), asked.texts("try"), wish, ExploreSettings(**settings), _side(asked)
    )


def report(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Measure erasures; answers with the figures when it is done. Fields: erasures (names, or objects with erasure and
    strength), words, keep, try, side, merge, and the settings of a report: seconds, calls, states, guidance, pictures,
    explicit, steps, seed, sensitive."""
    wanted = _asked(_measurement, body)
    job, card = _in_turn(lambda: reporting.run_report(wanted))
    return _answer(job) | {"report": None if card is None else json.loads(card.to_json())}


def _measurement(body: dict[str, Any]) -> Measurement:
    own = {"seconds", "calls", "states", "guidance", "pictures", "explicit", "steps", "seed", "sensitive"}
    asked = Fields(body, own | {"erasures", "words", "keep", "try", "side", "merge"})
    named = body.get("erasures")
    if not isinstance(named, list):
        raise InvalidSettings("erasures must be a list of names.")
    listed = (one if isinstance(one, dict) else {"erasure": one} for one in named)
    wishes = tuple(_wish(Fields(one, ("erasure", "strength"), "an erasure")) for one in listed)
    settings = ReportSettings(**{"pictures": not places.is_in_force()} | asked.values(own))
    return Measurement(
        wishes, asked.texts("words"), asked.texts("keep"), asked.texts("try"), settings, _side(asked),
        asked.flag("merge"),
    )  # fmt: skip


def _wish(asked: Fields) -> Wish:
    name, strength = asked.name("erasure"), asked.number("strength", 1.0)
    if not name:
        raise InvalidSettings("An erasure has no name; write that of a file.")
    return Wish(name.removesuffix(SUFFIX), strength, strength)


def explorations() -> list[str]:
    """Names of the saved explorations, the newest first."""
    return saved.names(saved.EXPLORATIONS)


def exploration(name: str) -> dict[str, Any]:
    """A saved exploration, every candidate with its scores."""
    return _found(lambda: asdict(saved.read_exploration(name)))


def reports() -> list[str]:
    """Names of the saved report cards, the newest first."""
    return saved.names(saved.REPORTS)


def report_card(name: str) -> dict[str, Any]:
    """The figures of a saved report card."""
    return _found(lambda: saved.read_report(name)[1])


def _found(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Raises:
    HTTPException: 404 for what is not there or damaged.
    """
    try:
        return read()
    except ErasureError as error:
        raise HTTPException(404, places.told(error)) from error


def interrupt() -> dict[str, str]:
    """Stop the running work after its present step; what is done so far is kept."""
    shared.state.interrupt()
    return {"status": "asked to stop"}
