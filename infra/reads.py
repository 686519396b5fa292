"""Reading together: callers that want streams at the same time share one round trip.

The first to come reads, for all who came while the one before it was reading; then the next of those who came
meanwhile. Nobody waits for company.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from commands.snapshots import Form
from infra.arrays import Blobs, Ints8, Texts
from infra.connection import Connection, Statement
from infra.groupcommit import EPOCH_UNKNOWN, Newer

STREAMS_MAX = 2_000
"""Of one round trip, as far as whole callers allow."""
TEXT = 25
READ = Statement(
    "SELECT stream, version, pos, topic, state FROM read_states($1, $2, $3, $4, $5)",
    (TEXT, Texts.oid, Ints8.oid, Texts.oid, Blobs.oid),
)


def _shut() -> threading.Lock:
    gate = threading.Lock()
    gate.acquire()
    return gate


@dataclass(slots=True, eq=False)
class Wanted:
    tenant: str
    after: Mapping[str, int]
    forms: Mapping[str, Form | None] = field(default_factory=dict)
    """Of those streams that a snapshot will do for."""
    gate: threading.Lock = field(default_factory=_shut)
    """Opens when it is answered, or when it is this caller's turn to read."""
    epoch: int = EPOCH_UNKNOWN
    rows: list[Newer] | None = None
    error: Exception | None = None


class Reads:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.queue: list[Wanted] = []
        self.busy = False

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Newer]:
        """Each stream's facts past a version, by stream and version."""
        return cast(list[Newer], self._read(Wanted(tenant, after)).rows)

    def recall(self, tenant: str, forms: Mapping[str, Form | None]) -> tuple[int, list[Newer]]:
        """The epoch; and for each stream its snapshot in this form, which is a row without a name, and the
        facts after it. Without a snapshot, or a form, all facts."""
        found = self._read(Wanted(tenant, dict.fromkeys(forms, 0), forms))
        return found.epoch, cast(list[Newer], found.rows)

    def _read(self, mine: Wanted) -> Wanted:
        with self.lock:
            self.queue.append(mine)
            mine_to_read, self.busy = not self.busy, True
        if not mine_to_read:
            mine.gate.acquire()
        if mine.rows is None and mine.error is None:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        return mine

    def _lead(self, mine: Wanted) -> None:
        """Answer those who wait, this caller first, and hand on."""
        with self.lock:
            batch = self._together(mine)
        for tenant in {each.tenant for each in batch}:
            asked = [each for each in batch if each.tenant == tenant]
            try:
                self._answer(tenant, asked)
            except Exception as error:  # noqa: BLE001  theirs as much as ours
                for each in asked:
                    each.error = error
        with self.lock:
            following = self.queue[:1]
            self.busy = bool(following)
        for each in (*batch[1:], *following):
            each.gate.release()

    def _together(self, mine: Wanted) -> list[Wanted]:
        self.queue.remove(mine)
        batch, streams = [mine], len(mine.after)
        while self.queue and streams + len(self.queue[0].after) <= STREAMS_MAX:
            streams += len(self.queue[0].after)
            batch.append(self.queue.pop(0))
        return batch

    def _answer(self, tenant: str, asked: Sequence[Wanted]) -> None:
        after: dict[str, int] = {}
        forms: dict[str, Form | None] = {}
        for each in asked:
            for stream, version in each.after.items():
                form = each.forms.get(stream)
                forms[stream] = (
                    form if forms.get(stream, form) is form else None
                )  # all want it, or nobody gets it
                after[stream] = min(version, after.get(stream, version))
        arguments = (
            tenant.encode(),
            Texts(list(after)).dumped(),
            Ints8(list(after.values())).dumped(),
            Texts([form and form.name for form in forms.values()]).dumped(),
            Blobs([form and form.shape for form in forms.values()]).dumped(),
        )
        (_, epoch, *_), *rows = self.connection.retrying(
            lambda conn: cast(list[Newer], READ.rows(conn, arguments))
        )
        for each in asked:
            each.epoch = epoch
        if len(asked) == 1:
            asked[0].rows = rows
            return
        by_stream: dict[str, list[Newer]] = {}
        for row in rows:
            by_stream.setdefault(row[0], []).append(row)
        for each in asked:
            each.rows = [
                row
                for stream in sorted(each.after)
                for row in by_stream.get(stream, ())
                if row[1] > each.after[stream]
            ]
