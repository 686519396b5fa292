"""What callers were told, beside what the log holds: every word of an answer is compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tests.infra.proofs.crowd import Fact, Request, Told
from tests.ledgers import InPostgres

KEYS = "SELECT key, first_position, facts FROM commands WHERE command = 'PlaceOrder'"
FACTS = (
    "SELECT notification_id, split_part(originator_id, '/', 2), originator_version, topic"
    " FROM stored_events ORDER BY notification_id"
)


class Books:
    """The whole log of a test, read by its administrator."""

    def __init__(self, stored: InPostgres) -> None:
        with stored.admin() as conn:
            self.keys = {key: (first, count) for key, first, count in conn.execute(KEYS)}
            self.facts: list[Fact] = [list(row) for row in conn.execute(FACTS)]
            row = conn.execute("SELECT position FROM head").fetchone()
        assert row is not None
        self.head: int = row[0]

    def of(self, key: str) -> list[Fact]:
        first, count = self.keys[key]
        return self.facts[first - 1 : first - 1 + count]

    def whole(self) -> None:
        """Rows = head; positions and the versions of every stream without a gap."""
        assert [fact[0] for fact in self.facts] == list(range(1, self.head + 1)), "positions have a gap"
        versions: dict[str, list[int]] = defaultdict(list)
        for _, stream, version, _ in self.facts:
            versions[stream].append(version)
        for stream, found in versions.items():
            assert found == list(range(1, len(found) + 1)), f"versions of {stream} have a gap"

    def taken(self, pool: str) -> int:
        return sum(
            stream == f"pool-{pool}" and name == "capacity.places-taken" for _, stream, _, name in self.facts
        )


def judge(books: Books, requests: Mapping[str, Request], told: Sequence[Told], places: int) -> None:
    """Raises AssertionError with what is wrong. Each request was one caller's, for one place in each of its
    pools, which have this many."""
    books.whole()
    assert sorted(each.key for each in told) == sorted(requests), "somebody was told nothing, or twice"
    accepted = {each.key for each in told if each.what == "answer"}
    assert accepted == books.keys.keys(), "accepted is not what is recorded"
    for each in told:
        if each.what == "answer":
            assert each.facts == books.of(each.key), f"{each.key} was told of other facts"
            assert each.position == each.facts[-1][0], f"{each.key} was told another position"
        else:
            full = [books.taken(pool) == places for pool in requests[each.key].pools]
            assert each.what == "sold out", each.what
            assert any(full), f"{each.key} was told of a pool that was never full"
    for pool in {pool for request in requests.values() for pool in request.pools}:
        sold = sum(pool in requests[key].pools for key in accepted)
        assert books.taken(pool) == sold <= places, f"pool {pool} was oversold, or sold to nobody"
