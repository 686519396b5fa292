"""The projector's contract, on every sink: whatever arrives, and whatever breaks, each fact counts once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest

from commands.ordering import PlaceOrder
from domain.capacity import PoolOpened
from domain.catalog import OfferListed
from domain.facts import Recorded
from domain.ordering import OrderPlaced
from domain.values import OrderId, Value
from infra.ledger import DATABASE_FAULTS
from infra.mapper import StoredFact
from infra.readmodel import definitions
from projections.analytics import SaleLineRow
from projections.registry import PROJECTIONS
from projections.rows import Add, Engine, Projection, Put, RowOp, Table
from streams import projector as projector_module
from streams.projector import Decoding, Projecting, Projector
from streams.topics import Run, context_of
from tests.spec import ANA, document
from tests.spec import line as order_line
from tests.streams.broken import Crash, Gate, Hooked, MarksFirst, crash, nothing
from tests.streams.line import Line, followers_in

KINDS = ("postgres", "clickhouse", "reaction")
ORDERS = 12


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def on(kind: str, request: pytest.FixtureRequest) -> Line:
    """A line with a dozen orders in it, that ends in this kind of sink."""
    line: Line = request.getfixturevalue("both" if kind == "clickhouse" else "line")
    place(line, range(ORDERS))
    return line


@pytest.fixture
def sold(line: Line) -> Line:
    """The same, in Postgres."""
    place(line, range(ORDERS))
    return line


def order_id(number: int) -> OrderId:
    return OrderId(UUID(int=number))


def place(line: Line, numbers: range) -> None:
    """Orders over three pools, in as many streams as there are orders."""
    handler = line.handler()
    for code in ("a", "b", "c"):
        if not line.conn.execute(
            "SELECT 1 FROM stored_events WHERE originator_id = %s", (f"acme/pool-{code}",)
        ).fetchone():
            line.given(
                OfferListed(offer=code, title=code, delivery="goods", pool=code),
                PoolOpened(pool=code, capacity=None),
            )
    for number in numbers:
        lines = tuple(order_line(code, number + 1, "1.25") for code in "abc"[: number % 3 + 1])
        command = PlaceOrder(
            order_id=order_id(number), document=document(f"{number}"), lines=lines, settled=True
        )
        handler.handle(command, by=ANA, key=f"order-{number}")


def right(line: Line, kind: str) -> None:
    """Every fact has had its effect, and once."""
    if kind == "reaction":
        asked = [fact for fact in line.stored() if fact.name == OrderPlaced.name and fact.state != b"?" * 20]
        assert len(line.payments()) == len(asked)
        assert len(set(line.payments())) == len(asked)
    else:
        line.agrees(Engine(kind))


def wrong(line: Line, kind: str = "postgres") -> None:
    """The suite's own assertion catches it."""
    with pytest.raises(AssertionError):
        right(line, kind)


def go(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


Deliver = Callable[[Projector, list[Run]], Awaitable[None]]


async def in_order(projector: Projector, runs: list[Run]) -> None:
    for run in runs:
        await projector.take([run])


async def all_at_once(projector: Projector, runs: list[Run]) -> None:
    await projector.take(runs)


async def twice(projector: Projector, runs: list[Run]) -> None:
    for run in runs:
        await projector.take([run, run])
    await projector.take(runs)


async def backwards(projector: Projector, runs: list[Run]) -> None:
    for run in reversed(runs):
        await projector.take([run])


async def backwards_at_once(projector: Projector, runs: list[Run]) -> None:
    await projector.take(runs[::-1])


async def every_third(projector: Projector, runs: list[Run]) -> None:
    """The others are lost; so is every tail that has no third, which is healed."""
    for run in runs[::3]:
        await projector.take([run])
    await heal(projector)


async def none_at_all(projector: Projector, runs: list[Run]) -> None:
    await heal(projector)


async def heal(projector: Projector) -> None:
    """Two looks see what has not moved; a long tail, or several followers, may take more."""
    for _ in range(4):
        await projector.heal_tails()


@pytest.mark.parametrize(
    "deliver", [in_order, all_at_once, twice, backwards, backwards_at_once, every_third, none_at_all]
)
def test_however_records_arrive_each_fact_counts_once(on: Line, kind: str, deliver: Deliver) -> None:
    async def story() -> None:
        runs = on.runs()
        on.publish(runs)
        async with on.projecting(kind) as projector:
            await deliver(projector, runs)
        right(on, kind)
        assert not on.parked()

    go(story())


@pytest.mark.parametrize("seed", range(3))
def test_lost_doubled_and_reordered_at_random_each_fact_counts_once(on: Line, kind: str, seed: int) -> None:
    async def story() -> None:
        chance = random.Random(seed)
        runs = on.runs(each=2)
        on.publish(runs)
        arriving = [run for run in runs for _ in range(chance.choice((0, 1, 1, 2)))]
        chance.shuffle(arriving)
        async with on.projecting(kind) as projector:
            while arriving:
                size = chance.randint(1, 6)
                await projector.take(arriving[:size])
                del arriving[:size]
            await heal(projector)
        right(on, kind)

    go(story())


def test_a_record_in_flight_is_not_taken_for_lost(sold: Line) -> None:
    """Healing costs a read of the log: only what was sent a whole look ago is looked for."""

    async def story() -> None:
        async with sold.projecting() as projector:
            await projector.heal_tails()
            sold.publish()
            assert await projector.heal_tails() == 0
            assert await projector.heal_tails() > 0
            assert await projector.heal_tails() == 0
        right(sold, "postgres")

    go(story())


def test_a_busy_worker_that_is_late_has_lost_nothing_yet(on: Line, kind: str) -> None:
    """While others' records keep coming, a tail waits its turn for some looks; then it heals all the same."""

    async def story() -> None:
        runs = on.runs()
        on.publish(runs)
        lost = next(run.place for run in reversed(runs) if context_of(run.topic) == "ordering")
        async with on.projecting(kind) as projector:
            await projector.take([run for run in runs if run.place != lost])
            await projector.heal_tails()
            for _ in range(projector_module.HEAL_LOOKS_BUSY - 1):
                await projector.take(runs[:1])  # a duplicate, but a record
                assert await projector.heal_tails() == 0
            assert projector.counted.healed == 0
            wrong(on, kind)
            await projector.take(runs[:1])
            assert await projector.heal_tails() == 1
        right(on, kind)

    go(story())


def test_what_all_partitions_of_a_topic_miss_is_read_once(
    sold: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        sold.publish()
        async with sold.projecting() as projector:
            read: list[tuple[str, int, int]] = []
            facts_of = projector.log.facts_of

            async def told(context: str, after: int, through: int) -> list[StoredFact]:
                read.append((context, after, through))
                return await facts_of(context, after, through)

            monkeypatch.setattr(projector.log, "facts_of", told)
            await projector.heal_tails()
            assert await projector.heal_tails() > len(projector.contexts)
            assert len(read) == len({context for context, _, _ in read})
        right(sold, "postgres")

    go(story())


def test_projectors_that_share_their_decoding_read_a_paper_once(
    both: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is the key: another ledger's fact of the same position is another fact."""

    async def story() -> None:
        place(both, range(ORDERS))
        papers = [fact for fact in both.stored() if len(fact.state) >= projector_module.SHARED_BYTES_MIN]
        assert papers
        decoding = Decoding()
        async with both.projecting() as rows, both.projecting("clickhouse") as blocks:
            rows.decoding = blocks.decoding = decoding
            await rows.take(both.runs())
            assert set(decoding.lately.kept) == {fact for fact in papers if fact.name == OrderPlaced.name}
            kept = list(decoding.lately.kept.values())
            await blocks.take(both.runs())
            assert all(a is b for a, b in zip(kept, decoding.lately.kept.values(), strict=True))
        right(both, "postgres")
        right(both, "clickhouse")
        other = papers[0]._replace(state=papers[-1].state)
        assert decoding.recorded(other).event == papers[-1].recorded().event

    go(story())


def test_a_gap_longer_than_one_commit_takes_several(
    on: Line, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector_module, "HEAL_POSITIONS_MAX", 5)

    async def story() -> None:
        runs = on.runs()
        async with on.projecting(kind) as projector:
            commits = counting(projector)
            await projector.take(runs[-8:])
            assert len(commits) > 5
            on.publish(runs)
            await heal(projector)
        right(on, kind)

    go(story())


def counting(projector: Projector) -> list[None]:
    commits: list[None] = []

    async def counted() -> None:
        commits.append(None)

    projector.sink = Hooked(projector.sink, before_commit=counted)
    return commits


# ── crashes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", ["before_mark", "before_commit"])
def test_a_crash_between_rows_and_commit_repeats_work_and_no_effect(on: Line, kind: str, moment: str) -> None:
    async def story() -> None:
        runs = on.runs()
        half = len(runs) // 2
        async with on.projecting(kind) as projector:
            await projector.take(runs[:half])
            projector.sink = Hooked(projector.sink, **{moment: crash})
            with pytest.raises(Crash):
                await projector.take(runs[half:])
        async with on.projecting(kind) as successor:
            await successor.take(runs[half:])
            on.publish(runs)
            await heal(successor)
        right(on, kind)

    go(story())


@pytest.mark.parametrize("moment", ["before_mark", "before_commit"])
def test_a_crash_after_parking_does_not_forget_what_was_parked(on: Line, kind: str, moment: str) -> None:
    async def story() -> None:
        position = on.poison(f"acme/order-{order_id(99)}")
        runs = on.runs()
        async with on.projecting(kind) as projector:
            projector.sink = Hooked(projector.sink, **{moment: crash})
            with pytest.raises(Crash):
                await projector.take(runs)
        assert not on.parked()
        async with on.projecting(kind) as successor:
            await successor.take(runs)
        right(on, kind)
        assert {parked[2] for parked in on.parked()} == {position}

    go(story())


@pytest.mark.parametrize("moment", ["before_mark", "before_commit"])
def test_what_was_to_be_parked_when_it_crashed_is_noticed_though_nothing_comes_any_more(
    on: Line, kind: str, moment: str
) -> None:
    """The crash is after ClickHouse has its progress, and before Postgres has what is parked."""

    async def story() -> None:
        position = on.poison(BAD)
        runs = on.runs()
        async with on.projecting(kind) as projector:
            projector.sink = Hooked(projector.sink, **{moment: crash})
            with pytest.raises(Crash):
                await projector.take(runs)
        on.publish(runs)
        async with on.projecting(kind) as successor:
            await heal(successor)
        right(on, kind)
        assert {parked[2] for parked in on.parked()} == {position}

    go(story())


def test_a_killed_connection_is_a_fault_and_nothing_is_half_done(sold: Line) -> None:
    async def story() -> None:
        runs = sold.runs()
        async with sold.projecting() as projector:
            gate = Gate()
            whole, projector.sink = projector.sink, Hooked(projector.sink, before_mark=gate)
            taking = asyncio.ensure_future(projector.take(runs))
            await gate.reached.wait()
            kill_workers(sold)
            gate.opened.set()
            with pytest.raises(DATABASE_FAULTS):
                await taking
            assert not any(sold.marks().values())
            projector.sink = whole
            await projector.take(runs)  # the same projector, as the worker does it
        right(sold, "postgres")

    go(story())


def kill_workers(line: Line) -> None:
    line.conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE usename = 'counterfoil_worker' AND datname = current_database()"
    )


# ── several owners ────────────────────────────────────────────────────────────────────────────────


def test_two_projectors_with_the_same_partitions_have_one_effect(on: Line, kind: str) -> None:
    async def story() -> None:
        runs = on.runs(each=2)
        on.publish(runs)
        async with on.projecting(kind) as one, on.projecting(kind) as other:
            await asyncio.gather(in_order(one, runs), in_order(other, runs), heal(one), heal(other))
        right(on, kind)

    go(story())


def test_the_marks_keep_a_zombie_out_until_it_is_dead(sold: Line) -> None:
    """It was frozen with its rows written. The next owner waits, and has all the say once it is gone."""

    async def story() -> None:
        async with sold.projecting() as zombie, sold.projecting() as owner:
            await zombie.take(sold.runs())
            place(sold, range(ORDERS, 2 * ORDERS))
            runs, gate = sold.runs(), Gate()
            zombie.sink = Hooked(zombie.sink, before_commit=gate)
            frozen = asyncio.ensure_future(zombie.take(runs))
            await gate.reached.wait()
            owning = asyncio.ensure_future(owner.take(runs))
            await asyncio.sleep(0.2)
            assert not owning.done()
            sold.conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'counterfoil_worker'"
                " AND datname = current_database() AND xact_start IS NOT NULL AND wait_event = 'ClientRead'"
            )
            await owning
            gate.opened.set()
            with pytest.raises(DATABASE_FAULTS):
                await frozen
        right(sold, "postgres")

    go(story())


def test_a_zombie_that_wakes_in_time_has_done_the_work(sold: Line) -> None:
    async def story() -> None:
        async with sold.projecting() as zombie, sold.projecting() as owner:
            await zombie.take(sold.runs())
            place(sold, range(ORDERS, 2 * ORDERS))
            runs, gate = sold.runs(), Gate()
            zombie.sink = Hooked(zombie.sink, before_commit=gate)
            frozen = asyncio.ensure_future(zombie.take(runs))
            await gate.reached.wait()
            owning = asyncio.ensure_future(owner.take(runs))
            await asyncio.sleep(0.1)
            gate.opened.set()
            await asyncio.gather(frozen, owning)
            assert owner.counted.facts == 0
            assert sum(sold.marks().values()) > 0
        right(sold, "postgres")

    go(story())


# ── poison ────────────────────────────────────────────────────────────────────────────────────────

BAD = f"acme/order-{order_id(99)}"


def later(line: Line) -> None:
    """More facts, of the poisoned stream and of others."""
    line.poison(BAD, state=line.stored()[-1].state)
    place(line, range(ORDERS, ORDERS + 4))


def test_a_poison_fact_parks_its_stream_and_everything_else_flows(on: Line, kind: str) -> None:
    async def story() -> None:
        first = on.poison(BAD)
        later(on)
        on.poison(BAD)
        async with on.projecting(kind) as projector:
            await projector.take(on.runs())
            assert projector.counted.parked
        assert {(stream, position) for _, stream, position, _ in on.parked()} >= {(BAD, first)}
        assert {stream for _, stream, _, _ in on.parked()} == {BAD}
        reasons = {position: reason for _, _, position, reason in on.parked()}
        assert "Unreadable" in reasons[first]
        assert all("behind" in reason for position, reason in reasons.items() if position != first)
        assert all(mark > 0 for mark in on.marks(kind).values())

    go(story())


class Moody:
    """A follower that cannot take one order until it is mended."""

    def __init__(self, line: Line) -> None:
        self.mended = False
        self.taken: list[int] = []
        self.inner = next(f for f in followers_in("postgres") if f.name == "ordering")
        self.name, self.names, self.contexts = self.inner.name, self.inner.names, self.inner.contexts

    def take(self, recorded: Recorded) -> Any:
        if not self.mended and recorded.version == 1 and recorded.stream == f"order-{order_id(3)}":
            raise RuntimeError("a mistake in the projection")
        self.taken.append(recorded.position)
        return self.inner.take(recorded)


def again(line: Line, number: int) -> None:
    """One more fact for the stream of an order that is there."""
    event = next(r.event for f in line.stored() if (r := f.recorded()).stream == f"order-{order_id(number)}")
    line.given(event)


def test_what_is_parked_drains_in_order_after_the_fix(sold: Line) -> None:
    async def story() -> None:
        moody = Moody(sold)
        again(sold, 3)
        again(sold, 3)
        async with sold.projecting(followers=[moody]) as projector:
            await projector.take(sold.runs())
            assert [reason for _, _, _, reason in sold.parked()] == [
                "RuntimeError: a mistake in the projection",
                projector_module.BEHIND,
                projector_module.BEHIND,
            ]
            assert await projector.drain() == 0
            wrong(sold)
            moody.mended = True
            moody.taken.clear()
            assert await projector.drain() == 3
            assert moody.taken == sorted(moody.taken)
            assert not sold.parked()
        ordering = [p for p in PROJECTIONS if p.name == "ordering"]
        sold.agrees(projections=ordering)

    go(story())


def test_facts_that_come_while_a_stream_is_parked_queue_up_behind_it(sold: Line) -> None:
    async def story() -> None:
        moody = Moody(sold)
        async with sold.projecting(followers=[moody]) as projector:
            await projector.take(sold.runs())
            again(sold, 3)
            await projector.take(sold.runs())
            assert len(sold.parked()) == 2
            moody.mended = True
            await projector.drain()
            again(sold, 3)
            await projector.take(sold.runs())
            assert not sold.parked()
        sold.agrees(projections=[p for p in PROJECTIONS if p.name == "ordering"])

    go(story())


def test_draining_goes_past_whatever_still_fails(sold: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of it than one page holds, and all of it older."""
    monkeypatch.setattr(projector_module, "DRAIN_MAX", 3)

    async def story() -> None:
        for _ in range(8):
            sold.poison(BAD)
        moody = Moody(sold)
        again(sold, 3)
        async with sold.projecting(followers=[moody]) as projector:
            await projector.take(sold.runs())
            moody.mended = True
            assert await projector.drain() == 2
        assert {stream for _, stream, _, _ in sold.parked()} == {BAD}

    go(story())


def test_whoever_drains_waits_for_another_that_does(sold: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has the fix, the other not yet: what the first leaves parked, nothing behind it overtakes."""
    monkeypatch.setattr(projector_module, "DRAIN_MAX", 2)

    async def story() -> None:
        old, new = Moody(sold), Moody(sold)
        for _ in range(5):
            again(sold, 3)
        async with (
            sold.projecting(followers=[old]) as one,
            sold.projecting(followers=[new]) as two,
        ):
            await one.take(sold.runs())
            new.mended = True
            gate = Gate()
            one.sink = Hooked(one.sink, before_commit=gate)
            failing = asyncio.ensure_future(one.drain())
            await gate.reached.wait()
            draining = asyncio.ensure_future(two.drain())
            await asyncio.sleep(0.2)
            gate.opened.set()
            assert tuple(await asyncio.gather(failing, draining)) == (0, 6)
            assert new.taken == sorted(new.taken)
        sold.agrees(projections=[p for p in PROJECTIONS if p.name == "ordering"])

    go(story())


def test_a_name_that_nobody_knows_parks_its_stream_with_every_follower_of_its_context(
    on: Line, kind: str
) -> None:
    async def story() -> None:
        position = on.poison(BAD, name="ordering.order-teleported", state=on.stored()[-1].state)
        async with on.projecting(kind) as projector:
            await projector.take(on.runs())
        right(on, kind)
        concerned = {f.name for f in followers_in(kind) if "ordering" in f.contexts}
        assert {(name, at) for name, _, at, _ in on.parked()} == {(name, position) for name in concerned}

    go(story())


class CountRow(Value):
    order: UUID
    units: int


class SumRow(Value):
    whole: int
    units: int = 0


COUNTS = Table("counts", CountRow, ("order",))
SUMS = Table("sums", SumRow, ("whole",), sums=("units",))
OVERFLOWING = 5
"""The order that a 64-bit column cannot hold."""


def count(recorded: Recorded) -> list[RowOp]:
    match recorded.event:
        case OrderPlaced() as order:
            units = 2**70 if order.order_id == order_id(OVERFLOWING) else 1
            return [
                Put(COUNTS, CountRow(order=order.order_id, units=units)),
                Add(SUMS, (1,), {"units": units}),
            ]
        case _:
            return []


COUNTING = Projection("counting", (OrderPlaced,), (COUNTS, SUMS), count)


@pytest.fixture
def counted(sold: Line) -> Iterator[Line]:
    for table in COUNTING.tables:
        for statement in definitions(table, 1):
            sold.conn.execute(statement.encode())
    yield sold
    for table in COUNTING.tables:
        past = "moves" if table.sums else "history"
        sold.conn.execute(f"DROP TABLE {table.name}_v1, {table.name}_v1_{past}".encode())


def test_the_one_row_that_the_database_refuses_is_found_and_parked(counted: Line) -> None:
    async def story() -> None:
        again(counted, OVERFLOWING)
        async with counted.projecting(followers=[Projecting(COUNTING)]) as projector:
            await projector.take(counted.runs())
            assert projector.counted.parked == 2
            assert await projector.drain() == 0
        (_, _, _, first), (_, _, _, second) = counted.parked()
        assert "out of range" in first
        assert second == projector_module.BEHIND
        shown = counted.shown(COUNTS)
        assert len(shown) == ORDERS - 1
        assert counted.shown(SUMS)["acme", 1] == ("acme", 1, ORDERS - 1)
        assert counted.told(SUMS, 2**62) == counted.shown(SUMS)

    go(story())


def test_draining_goes_past_what_the_database_still_refuses(counted: Line) -> None:
    mended = False

    def moody(recorded: Recorded) -> list[RowOp]:
        if recorded.stream == f"order-{order_id(7)}" and not mended:
            raise RuntimeError("a mistake in the projection")
        return count(recorded)

    async def story() -> None:
        nonlocal mended
        projection = Projection("counting", (OrderPlaced,), (COUNTS, SUMS), moody)
        async with counted.projecting(followers=[Projecting(projection)]) as projector:
            await projector.take(counted.runs())
            assert len(counted.parked()) == 2
            mended = True
            assert await projector.drain() == 1
        ((_, stream, _, _),) = counted.parked()
        assert stream == f"acme/order-{order_id(OVERFLOWING)}"
        assert len(counted.shown(COUNTS)) == ORDERS - 1

    go(story())


def test_the_one_row_that_clickhouse_cannot_hold_is_found_and_parked(both: Line) -> None:
    place(both, range(ORDERS))
    sales = next(p for p in PROJECTIONS if any(t.name == "sale_lines" for t in p.tables))

    def swollen(recorded: Recorded) -> Sequence[RowOp]:
        ops: list[RowOp] = list(sales.project(recorded))
        match recorded.event:
            case OrderPlaced(order_id=found) if found == order_id(OVERFLOWING):
                return [
                    Put(op.table, op.row._replace(quantity=2**70))
                    for op in ops
                    if isinstance(op, Put) and isinstance(op.row, SaleLineRow)
                ]
        return ops

    async def story() -> None:
        projection = Projection(sales.name, sales.events, sales.tables, swollen)
        async with both.projecting("clickhouse", [Projecting(projection)]) as projector:
            await projector.take(both.runs())
        ((_, stream, _, _),) = both.parked()
        assert stream == f"acme/order-{order_id(OVERFLOWING)}"
        table = sales.tables_in(Engine.CLICKHOUSE)[0]
        expected = {
            key: row
            for key, row in both.fold().rows(table).items()
            if not any(f.position == key[1] and f.originator_id == stream for f in both.stored())
        }
        assert both.shown(table) == expected

    go(story())


# ── rows and their past ───────────────────────────────────────────────────────────────────────────


def several(recorded: Recorded) -> list[RowOp]:
    """Puts, takes back and puts again, some of it within one fact."""
    match recorded.event:
        case OrderPlaced() as order:
            one, two = order_id(1000), order_id(1001)
            first: list[RowOp] = [
                Put(COUNTS, CountRow(order=one, units=recorded.version)),
                Put(COUNTS, CountRow(order=two, units=recorded.version)),
                Put(COUNTS, CountRow(order=one, units=10 * recorded.version)),
            ]
            return first if order.order_id == order_id(3) else []
        case _:
            return []


def test_a_fact_that_puts_a_row_twice_leaves_one_line_of_history(counted: Line) -> None:
    projection = Projection("counting", (OrderPlaced,), (COUNTS,), several)

    async def story() -> None:
        again(counted, 3)
        again(counted, 3)
        async with counted.projecting(followers=[Projecting(projection)]) as projector:
            await projector.take(counted.runs())
        assert not counted.parked()
        counted.agrees(projections=[projection])
        positions = [f.position for f in counted.stored() if f.originator_id == f"acme/order-{order_id(3)}"]
        for version, position in enumerate(positions, 1):
            units = {row[2] for row in counted.told(COUNTS, position).values()}
            assert units == {version, 10 * version}
            counted_fold = counted.fold(position, [projection])
            assert counted.told(COUNTS, position) == counted_fold.rows(COUNTS)

    go(story())


# ── negative controls ─────────────────────────────────────────────────────────────────────────────


def test_control_a_checkpoint_that_commits_before_the_rows_is_caught(sold: Line) -> None:
    """Killed in between, it has lost facts for good; the same sink that is not killed looks right."""

    async def story(between: Callable[[], Awaitable[None]]) -> None:
        runs = sold.runs()
        sold.publish(runs)
        async with sold.projecting() as projector:
            whole = projector.sink
            projector.sink = MarksFirst(whole, between)
            for run in runs:
                try:
                    await projector.take([run])
                except Crash:
                    await projector.take([run])  # its successor is given the record again
            projector.sink = whole
            await heal(projector)

    go(story(nothing))
    right(sold, "postgres")
    sold.empty()
    place(sold, range(ORDERS))
    crashes = iter([crash])
    go(story(lambda: next(crashes, nothing)()))
    wrong(sold)


def test_control_without_healing_a_lost_tail_stays_missing(on: Line, kind: str) -> None:
    async def story() -> None:
        runs = on.runs()
        on.publish(runs)
        ends = {run.place: run for run in runs}
        async with on.projecting(kind) as projector:
            await projector.take([run for run in runs if run is not ends[run.place]])
            wrong(on, kind)
            await heal(projector)
        right(on, kind)

    go(story())
