"""Reference documents made from the code: facts, HTTP, topics. Kept in docs/, checked for drift."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from api.app import create
from domain.registry import EVENTS

DOCS = Path(__file__).parent.parent / "docs"


def documents() -> dict[Path, str]:
    """What each generated file should say."""
    told: dict[Path, str] = {}
    for name, event in EVENTS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **event.model_json_schema()}
        told[DOCS / "events" / f"{name}.v{event.class_version}.json"] = _text(schema)
    told[DOCS / "openapi.json"] = _text(create().openapi())
    topics = subprocess.run(
        [sys.executable, "-m", "streams.asyncapi"], check=True, capture_output=True, text=True
    ).stdout
    told[DOCS / "asyncapi.json"] = _text(json.loads(topics))
    return told


def _text(document: Any) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def drift(told: dict[Path, str]) -> list[str]:
    """Generated files that are missing, differ, or should not be there."""
    found = [str(path) for path, text in told.items() if not path.exists() or path.read_text() != text]
    return found + [str(path) for path in (DOCS / "events").glob("*.json") if path not in told]


def write(told: dict[Path, str]) -> None:
    for path in (DOCS / "events").glob("*.json"):
        if path not in told:
            path.unlink()
    for path, text in told.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
