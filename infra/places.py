"""Which topic carries which context, and which partition carries which stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from domain.registry import CONTEXTS
from infra.ledger import Place
from infra.mapper import StoredFact

PARTITIONS = 4
"""Of every topic. The count is in the topic's name: another count is another topic, and a replay."""


def topic_of(ledger: str, context: str) -> str:
    return f"counterfoil.{ledger}.{context}.v1.p{PARTITIONS}"


def context_of(topic: str) -> str:
    return topic.split(".")[2]


def topics(ledger: str, contexts: Iterable[str] = CONTEXTS) -> list[str]:
    return [topic_of(ledger, context) for context in contexts]


def partition_of(originator_id: str) -> int:
    """Of tenant/stream. Computed here and passed explicitly: clients' own hashes differ."""
    return zlib.crc32(originator_id.encode()) % PARTITIONS


def place_of(ledger: str, fact: StoredFact) -> Place:
    return topic_of(ledger, fact.name.partition(".")[0]), partition_of(fact.originator_id)
