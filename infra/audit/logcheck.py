"""The log by itself: no position missing, streams in order, every fact readable and covered by a key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from domain.audit import ProjectionRebuilt
from domain.facts import Recorded
from domain.registry import CONTEXTS, EVENTS
from infra.audit.findings import REGISTER, RESTORE, Findings
from infra.eventstore import LIBRARY_ACTOR
from infra.ledger import Place
from infra.mapper import TIME, StoredFact, Unreadable, split
from infra.places import place_of

KeyRow = tuple[str, str, str, int, int]
"""tenant, actor, key, first position, facts"""


@dataclass(slots=True)
class LogCheck:
    """Takes the whole log, page by page in order; with a tenant, only that tenant's facts are read."""

    findings: Findings
    ledger: str
    through: int
    """As far as the relay says it has published."""
    heads: dict[Place, int]
    tenant: str | None = None

    position: int = 0
    at_us: int = -(2**63)
    facts: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    published: dict[Place, int] = field(default_factory=dict)
    """The last fact of each partition, as far as `through`."""
    last: dict[Place, int] = field(default_factory=dict)
    rebuilt: dict[str, int] = field(default_factory=dict)
    """The last version of each projection whose rebuild is on record."""
    keys: list[KeyRow] = field(default_factory=list)
    """Those not yet reached, in order."""
    key: KeyRow | None = None
    key_count: int = 0
    covered_through: int = 0

    def take(
        self, page: Iterable[StoredFact], keys: Iterable[KeyRow], through: int
    ) -> list[tuple[StoredFact, Recorded]]:
        """Check the facts up to `through` and the keys that begin there; returns what could be read."""
        self.keys = [*self.keys, *keys]
        self.keys.reverse()
        read = []
        for fact in page:
            self._ordered(fact)
            self._next_key(fact.position)
            if self.tenant is None or fact.originator_id.startswith(f"{self.tenant}/"):
                self._in_stream(fact)
                recorded = self._readable(fact)
                if recorded is not None:
                    read.append((fact, recorded))
                self._asked_for(fact, recorded)
                self.facts += 1
        if self.position < through:
            self._missing(self.position + 1, through)
            self.position = through
        self._next_key(through)
        self.keys.reverse()
        return read

    def _ordered(self, fact: StoredFact) -> None:
        if fact.position != self.position + 1:
            self._missing(self.position + 1, fact.position - 1)
        self.position = fact.position
        at_us = TIME.unpack_from(fact.state)[0] if len(fact.state) >= TIME.size else self.at_us
        if at_us < self.at_us:
            what = "the recorded time is earlier than that of the fact before"
            self.findings.add("time-order", what, _where(fact), RESTORE)
        self.at_us = at_us
        if fact.name.partition(".")[0] in CONTEXTS:
            place = place_of(self.ledger, fact)
            self.last[place] = fact.position
            if fact.position <= self.through:
                self.published[place] = fact.position

    def _missing(self, first: int, last: int) -> None:
        many = f"positions {first} to {last} are" if last > first else f"position {first} is"
        self.findings.add("position-gap", f"{many} missing from the log", f"position {first}", RESTORE)

    def _in_stream(self, fact: StoredFact) -> None:
        expected = self.versions.get(fact.originator_id, 0) + 1
        if fact.version != expected:
            what = f"version {fact.version} where version {expected} follows"
            self.findings.add("version-order", what, _where(fact), RESTORE)
        self.versions[fact.originator_id] = fact.version

    def _readable(self, fact: StoredFact) -> Recorded | None:
        if fact.name not in EVENTS:
            self.findings.add("unknown-name", f"no fact is named {fact.name!r}", _where(fact), REGISTER)
            return None
        try:
            recorded = fact.recorded()
        except Unreadable as broken:
            self.findings.add("unreadable", str(broken), _where(fact), f"{RESTORE}; or {REGISTER}")
            return None
        if recorded.event.stream != recorded.stream:
            what = f"the fact says that it belongs to {recorded.event.stream}"
            self.findings.add("wrong-stream", what, _where(fact), RESTORE)
        if isinstance(recorded.event, ProjectionRebuilt):
            self.rebuilt[recorded.event.projection] = recorded.event.version
        return recorded

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────

    def _next_key(self, position: int) -> None:
        """Make the key that covers this position the current one; `keys` is reversed."""
        while self.keys and self.keys[-1][3] <= position:
            self.key = self.keys.pop()
            self.key_count += 1
            first, last = self.key[3], self.key[3] + self.key[4] - 1
            if first <= self.covered_through:
                what = f"positions {first} to {min(last, self.covered_through)} belong to an earlier key too"
                self.findings.add("key-overlap", what, _key(self.key), RESTORE)
            self.covered_through = max(self.covered_through, last)

    def _asked_for(self, fact: StoredFact, recorded: Recorded | None) -> None:
        if self.key is None or fact.position > self.key[3] + self.key[4] - 1:
            self.findings.add("no-key", "no idempotency key covers this fact", _where(fact), RESTORE)
            return
        tenant, actor, key, first, _ = self.key
        if split(fact.originator_id)[0] != tenant:
            self.findings.add("wrong-key", f"covered by {_key(self.key)}", _where(fact), RESTORE)
        elif recorded is not None and actor != LIBRARY_ACTOR:  # whose facts bring envelopes of their own
            envelope = recorded.envelope
            if (envelope.actor, envelope.key, recorded.number) != (actor, key, fact.position - first):
                what = f"fact {recorded.number} of {envelope.actor!r}, key {envelope.key!r}"
                self.findings.add("wrong-key", f"{what}; covered by {_key(self.key)}", _where(fact), RESTORE)

    # ── at the end ────────────────────────────────────────────────────────────────────────────────

    def finish(self, at_us: int, beyond: int) -> None:
        """With the head row's time, and how many facts stand after the head."""
        if beyond:
            what = f"{beyond} facts stand after the head row's position"
            self.findings.add("head", what, f"position {self.position + 1}", RESTORE)
        if self.position and at_us != self.at_us:
            what = f"the head row says {at_us} microseconds, the last fact {self.at_us}"
            self.findings.add("head", what, f"position {self.position}", RESTORE)
        for key in [*self.keys, *([self.key] if self.key else [])]:
            if key[3] + key[4] - 1 > self.position:
                self.findings.add("key-beyond-head", "the key's facts are not there", _key(key), RESTORE)
        self._relayed()

    def _relayed(self) -> None:
        do = (
            "stop the relays; set relay.through to the last good position: everything after it goes out again"
        )
        if self.through > self.position:
            what = f"the relay says it is through position {self.through}, the log ends at {self.position}"
            self.findings.add("relay", what, "relay", do)
        for place, last in sorted(self.published.items()):
            said = self.heads.get(place, 0)
            if said < last:
                what = f"relay_head is {said}, but {last} is published up to {self.through}"
                self.findings.add("relay", what, f"{place[0]}/{place[1]}", do)
        for place, said in sorted(self.heads.items()):
            if said > self.last.get(place, 0) and place[0].startswith(f"counterfoil.{self.ledger}."):
                what = f"relay_head is {said}, its last fact is at {self.last.get(place, 0)}"
                self.findings.add("relay", what, f"{place[0]}/{place[1]}", do)


def _where(fact: StoredFact) -> str:
    return f"position {fact.position}, {fact.originator_id} version {fact.version}"


def _key(key: KeyRow) -> str:
    tenant, actor, name, first, facts = key
    return f"key {name!r} of {actor!r} in {tenant!r} (positions {first} to {first + facts - 1})"
