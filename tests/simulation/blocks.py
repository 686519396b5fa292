"""ClickHouse, as its client: blocks of rows that replace those of the same key, and no transactions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.analytics import physical
from projections.registry import projections_in
from projections.rows import Engine, Table
from tests.simulation.faults import Chance
from tests.simulation.loop import VirtualLoop

BLOCK_S = 0.01
PROGRESS_KEY = ("name", "version", "topic", "partition")
TABLES: dict[str, Table] = {
    physical(table, 1): table
    for projection in projections_in(Engine.CLICKHOUSE)
    for table in projection.tables_in(Engine.CLICKHOUSE)
}


@dataclass(frozen=True, slots=True)
class Answer:
    column_names: tuple[str, ...]
    result_rows: list[tuple[Any, ...]]


class Blocks:
    """What is stored: by table and sorting key, the row of the highest version, as FINAL reads it."""

    def __init__(self, loop: VirtualLoop, chance: Chance) -> None:
        self.loop, self.chance = loop, chance
        self.tables: defaultdict[str, dict[tuple[Any, ...], dict[str, Any]]] = defaultdict(dict)

    def client(self, database: str) -> Client:
        """`infra.analytics.ClickHouse._connect`."""
        return Client(self)

    def insert(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        key, version = (
            (PROGRESS_KEY, "position") if table == "progress" else (TABLES[table].whole_key, "from_position")
        )
        for row in rows:
            mine = tuple(row[name] for name in key)
            before = self.tables[table].get(mine)
            if before is None or before[version] <= row[version]:
                self.tables[table][mine] = row


class Client:
    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    def query(self, sql: str, parameters: dict[str, Any] | None = None) -> Answer:
        """The one question that the sink asks: how far each projection reaches."""
        assert sql.startswith("SELECT name, version, topic, partition, max(position) FROM progress"), sql
        self._through(lambda: None)
        names = (parameters or {}).get("names")
        rows = [
            (*key, row["position"])
            for key, row in self.blocks.tables["progress"].items()
            if names is None or key[0] in names
        ]
        return Answer(("name", "version", "topic", "partition", "max(position)"), rows)

    def insert(
        self, table: str, block: Sequence[Sequence[Any]], *, column_names: list[str], column_oriented: bool
    ) -> None:
        rows = [dict(zip(column_names, row, strict=True)) for row in zip(*block, strict=True)]
        self._through(lambda: self.blocks.insert(table, rows))

    def _through(self, work: Callable[[], None]) -> None:
        """A request that may fail before or after it is carried out."""
        chance, sleep = self.blocks.chance, self.blocks.loop.fibers.sleep
        sleep(chance.delay_s(BLOCK_S))
        fails = chance.happens(chance.weather.block_fails)
        if not fails or chance.happens(0.5):
            work()
        if fails:
            raise OSError("connection reset by peer")

    def close(self) -> None:
        """Nothing is kept."""
