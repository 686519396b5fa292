"""The topics as an AsyncAPI 3 document: `python -m streams.asyncapi` prints it."""

from __future__ import annotations

import json
from typing import Any

from domain.registry import CONTEXTS, EVENTS
from streams.topics import PARTITIONS, topic_of

LEDGER = "0"
RECORD = (
    "A run of one partition's facts, big-endian: format (8 bits, 1), after (64), last (64), count (32);"
    " then for each fact: position (64), version (64), sizes of stream and name (16 each), size of state"
    " (32), stream, name, state. It holds all of the partition's facts with positions in (after, last];"
    " whoever has come less far than `after` reads the gap from the log. A state is 14 bytes of header"
    " (recorded time in microseconds 64, number 16, class version 16, size of the envelope 16), the"
    " envelope and the fact as JSON."
)


def document() -> dict[str, Any]:
    """AsyncAPI 3.0.0. The topics are internal: transport between the relay and the workers, may be lost."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for context in CONTEXTS:
        names = sorted(name for name, event in EVENTS.items() if event.context() == context)
        channels[context] = {
            "address": topic_of(LEDGER, context),
            "description": f"Facts of {context}: {', '.join(names)}.",
            "messages": {"run": {"$ref": "#/components/messages/run"}},
            "bindings": {"kafka": {"topic": topic_of(LEDGER, context), "partitions": PARTITIONS}},
        }
        operations[f"follow-{context}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{context}"},
            "summary": f"Workers follow {context}.",
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Counterfoil, internal topics",
            "version": "1",
            "description": "Between the relay and the workers. Never the truth: the log is.",
        },
        "defaultContentType": "application/octet-stream",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {
                "run": {
                    "name": "run",
                    "contentType": "application/octet-stream",
                    "payload": {"type": "string", "format": "binary", "description": RECORD},
                    "x-facts": {
                        name: f"events/{name}.v{event.class_version}.json"
                        for name, event in sorted(EVENTS.items())
                    },
                }
            }
        },
    }


if __name__ == "__main__":
    print(json.dumps(document(), indent=2))  # noqa: T201
