"""What invoices become, and that each is imported once: today, next year, by anybody, through any fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.retail.file import Invoice, SaleLine, read_invoices
from api.retail.importer import (
    BATCH_INVOICES,
    CHANGED_REASON,
    PERMISSIONS,
    TRIES_MAX,
    Failure,
    Summary,
    commands_of,
    import_invoices,
    is_charge,
    papers_of,
    titles_of,
)
from commands.capacity import AdjustStock
from commands.catalog import ListOffer
from commands.handling import Actor, Handler, NotPermitted
from commands.log import Append, Busy, Outcome
from commands.ordering import PlaceOrder, ReturnGoods
from commands.payments import AdjustBadDebt
from domain.capacity import AdjustmentRecorded, PlacesReturned, PlacesTaken, PoolOpened, StockAdjusted
from domain.catalog import AmountTooLarge, OfferListed
from domain.facts import Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.payments import BadDebtAdjusted
from domain.values import Permission
from infra.connection import LogUnavailable
from infra.eventstore import PostgresLog
from infra.memory import MemoryLog
from infra.migrate import schema_of
from infra.settings import Settings

DATA = Path(__file__).parents[2] / "data"
CORNERS = DATA / "retail_small" / "corners.csv"
ANA = Actor("shop", "ana", PERMISSIONS)
BEN = Actor("shop", "ben", PERMISSIONS)
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MORNING = datetime.fromisoformat("2010-12-01 08:26")


def sale(
    code: str = "71053", quantity: int = 6, *, description: str = "LANTERN", at: datetime | None = None
) -> SaleLine:
    return SaleLine(code, description, quantity, 3_390_000, at)


def invoice(number: str, *lines: SaleLine, first_line: int = 2, country: str = "EIRE") -> Invoice:
    return Invoice(number, first_line, "17850", country, MORNING, list(lines or (sale(),)))


def handler_of(log: MemoryLog | PostgresLog) -> Handler:
    """A fresh one remembers nothing, like another process."""
    return Handler(log, lambda: NOON)


def imported(
    log: MemoryLog | PostgresLog,
    invoices: Sequence[Invoice],
    *,
    actor: Actor = ANA,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    return import_invoices(
        handler_of(log), invoices, actor=actor, currency="GBP", stop=stop, pause=lambda s: None
    )


def facts_of(log: MemoryLog) -> tuple[Recorded, ...]:
    return log.recorded("shop", 1, len(log.rows))


def events_of(log: MemoryLog, *kinds: type) -> list[object]:
    return [recorded.event for recorded in facts_of(log) if isinstance(recorded.event, kinds)]


def content_of(log: MemoryLog) -> list[tuple[str, int, bytes]]:
    """Every fact in its stream, whoever recorded it under whatever key."""
    return sorted((r.stream, r.version, r.event.stored()) for r in facts_of(log))


def facts_by_stream(log: MemoryLog) -> list[tuple[str, bytes]]:
    """Whatever came first: of invoices that are recorded together, a fault may put one behind the others."""
    return sorted((stream, stored) for stream, _, stored in content_of(log))


@pytest.fixture(params=[1, 20], ids=["one at a time", "together"])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many invoices are recorded at once."""
    monkeypatch.setattr("api.retail.importer.TOGETHER_INVOICES", request.param)
    return int(request.param)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One invoice at a time: what happens between two of them can be said exactly."""
    monkeypatch.setattr("api.retail.importer.TOGETHER_INVOICES", 1)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


# ── what an invoice becomes ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given_invoice", "becomes"),
    [
        (invoice("536365", sale(), sale()), [("invoice-536365", PlaceOrder)]),
        (invoice("C536379", sale(quantity=-1)), [("invoice-C536379", ReturnGoods)]),
        (invoice("C536379", sale(quantity=-2), sale(quantity=1)), [("invoice-C536379", ReturnGoods)]),
        (invoice("C536379", sale(quantity=0)), [("invoice-C536379", ReturnGoods)]),
        (invoice("A563185", sale("B", 1)), [("invoice-A563185", AdjustBadDebt)]),
        (invoice("536589", sale(quantity=-10)), [("invoice-536589", AdjustStock)]),
        (invoice("536589", sale(quantity=0)), [("invoice-536589", AdjustStock)]),
        (
            invoice("1", sale(quantity=-1), sale(), sale(quantity=0)),
            [("invoice-1", PlaceOrder), ("invoice-1-stock", AdjustStock)],
        ),
        (invoice("c536379", sale(quantity=-1)), [("invoice-c536379", AdjustStock)]),
        (invoice("TILL7", sale()), [("invoice-TILL7", PlaceOrder)]),
    ],
    ids=lambda value: value.number if isinstance(value, Invoice) else "",
)
def test_the_number_and_the_quantities_say_what_an_invoice_becomes(
    given_invoice: Invoice, becomes: list[tuple[str, type]]
) -> None:
    commands = commands_of(given_invoice, "shop", "GBP")
    assert [(key, type(command)) for key, command in commands] == becomes


def test_every_paper_carries_the_digest_of_the_whole_invoice() -> None:
    mixed = invoice("1", sale(), sale(quantity=-1))
    (_, order), (_, stock) = commands_of(mixed, "shop", "GBP")
    assert isinstance(order, PlaceOrder)
    assert isinstance(stock, AdjustStock)
    assert order.document == stock.document
    assert order.document.digest == mixed.digest()
    assert order.settled, "a till's invoice is paid"


@given(st.sampled_from(["1", "C1", "A1"]), st.lists(st.integers(-2, 2), min_size=1))
def test_every_line_is_on_exactly_one_paper(number: str, quantities: list[int]) -> None:
    whole = invoice(number, *(sale(str(nth), quantity) for nth, quantity in enumerate(quantities)))
    on_papers = [line for lines in papers_of(whole).values() for line in lines]
    assert Counter(on_papers) == Counter(whole.lines)


def test_ids_follow_from_tenant_and_number_for_ever() -> None:
    ((_, order),) = commands_of(invoice("536365"), "shop", "GBP")
    ((_, stock),) = commands_of(invoice("536365", sale(quantity=-1)), "shop", "GBP")
    assert isinstance(order, PlaceOrder)
    assert isinstance(stock, AdjustStock)
    assert str(order.order_id) == "25b39f14-a696-5ce9-82ea-650aa1066225"
    assert str(stock.adjustment_id) == "b5e482ae-480d-5a36-b290-7fefaf2d6a6c"
    ((_, elsewhere),) = commands_of(invoice("536365"), "other", "GBP")
    assert isinstance(elsewhere, PlaceOrder)
    assert elsewhere.order_id != order.order_id


def test_a_title_is_the_description_else_the_code_and_of_an_adjustment_the_reason() -> None:
    untitled = invoice(
        "1", sale(description=""), sale(quantity=-1, description=""), sale(quantity=-2, description="damp")
    )
    (_, order), (_, stock) = commands_of(untitled, "shop", "GBP")
    assert isinstance(order, PlaceOrder)
    assert isinstance(stock, AdjustStock)
    assert [line.title for line in order.lines] == ["71053"]
    assert [line.title for line in stock.lines] == ["unspecified", "damp"]


def test_an_offer_is_called_what_an_order_or_a_return_calls_it() -> None:
    assert titles_of(
        [
            invoice("1", sale("a", -1, description="damp"), sale("b", description="")),
            invoice("2", sale("a", description="VASE"), sale("b", description="")),
            invoice("C3", sale("c", -1, description="CUP")),
            invoice("4", sale("a", description="VASES"), sale("c", description="MUG")),
        ]
    ) == {"a": "VASE", "c": "CUP"}


def test_charges_are_told_by_their_codes_in_any_letter_case() -> None:
    assert all(
        map(is_charge, ["POST", "DOT", "M", "m", "D", "S", "C2", "B", "CRUK", "Bank Charges", "AMAZONFEE"])
    )
    assert not any(map(is_charge, ["84077", "PADS", "gift_0001_20", "DCGSSGIRL", "MM", "TEST001", ""]))


# ── what is recorded ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("together")
def test_the_corners_of_the_format_become_these_papers(log: MemoryLog) -> None:
    summary = imported(log, read_invoices(CORNERS))
    assert (summary.invoices, summary.lines, summary.imported, summary.failed) == (7, 13, 7, [])
    papers = events_of(log, OrderPlaced, GoodsReturned, AdjustmentRecorded, BadDebtAdjusted)
    assert [(type(paper).__name__, paper.document.number, len(paper.lines)) for paper in papers] == [  # type: ignore[attr-defined]
        ("OrderPlaced", "600001", 3),
        ("OrderPlaced", "600002", 1),
        ("GoodsReturned", "C600003", 2),
        ("BadDebtAdjusted", "A600004", 1),
        ("AdjustmentRecorded", "600005", 2),
        ("OrderPlaced", "600006", 1),
        ("AdjustmentRecorded", "600006", 2),
        ("OrderPlaced", "c600007", 1),
    ]


@pytest.mark.usefixtures("together")
def test_goods_move_their_pools_and_charges_move_none(log: MemoryLog) -> None:
    imported(log, read_invoices(CORNERS))
    moves = [
        (fact.pool, fact.quantity)
        for fact in events_of(log, PlacesTaken, PlacesReturned, StockAdjusted)
        if isinstance(fact, PlacesTaken | PlacesReturned | StockAdjusted)
    ]
    assert moves == [
        ("84077", 48),
        ("85123A", 6),
        ("85123a", 1),
        ("84077", 8),
        ("85123A", -1),
        ("84077", -10),
        ("22423", -1),
        ("22423", 2),
        ("22423", -1),
    ]


def test_each_code_of_goods_is_offered_once_as_written_with_a_pool_that_has_no_ceiling(
    log: MemoryLog,
) -> None:
    imported(log, read_invoices(CORNERS))
    offers = [fact for fact in events_of(log, OfferListed) if isinstance(fact, OfferListed)]
    assert {offer.offer: offer.title for offer in offers} == {
        "84077": "WORLD WAR 2 GLIDERS ASSTD DESIGNS",
        "85123A": "WHITE HANGING HEART T-LIGHT HOLDER",
        "85123a": "85123a",
        "22423": "REGENCY CAKESTAND 3 TIER",
        "71053": "71053",
    }
    assert len(offers) == 5
    assert all(fact.capacity is None for fact in events_of(log, PoolOpened) if isinstance(fact, PoolOpened))


def test_a_line_of_another_day_keeps_it_and_the_document_has_the_first(log: MemoryLog) -> None:
    imported(log, read_invoices(CORNERS)[:1])
    (order,) = events_of(log, OrderPlaced)
    assert isinstance(order, OrderPlaced)
    assert order.document.placed_at == datetime.fromisoformat("2010-12-31 23:58")
    assert [line.placed_at for line in order.lines] == [
        None,
        None,
        datetime.fromisoformat("2011-01-01 00:01"),
    ]


# ── once only ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("again_by", [ANA, BEN], ids=["the same actor", "another actor"])
def test_what_was_imported_is_not_imported_again(log: MemoryLog, again_by: Actor) -> None:
    invoices = read_invoices(CORNERS)
    imported(log, invoices)
    facts = len(log.rows)
    again = imported(log, invoices, actor=again_by)
    assert (again.imported, again.already_imported, again.failed) == (0, len(invoices), [])
    assert len(log.rows) == facts


def test_a_longer_file_brings_only_what_is_new(log: MemoryLog) -> None:
    invoices = read_invoices(CORNERS)
    imported(log, invoices[:3])
    again = imported(log, invoices)
    assert (again.imported, again.already_imported) == (4, 3)
    alone = MemoryLog()
    imported(alone, invoices)
    assert content_of(log) == content_of(alone)


def test_what_was_imported_in_another_currency_is_an_error(log: MemoryLog) -> None:
    imported(log, [invoice("1")])
    again = import_invoices(handler_of(log), [invoice("1")], actor=ANA, currency="EUR")
    assert list(map(str, again.failed)) == ["invoice 1 (line 2) was imported before in GBP, not EUR"]


def test_another_tenant_has_papers_of_its_own(log: MemoryLog) -> None:
    imported(log, [invoice("1")])
    other = imported(log, [invoice("1", sale(quantity=7))], actor=Actor("other", "ana", PERMISSIONS))
    assert (other.imported, other.failed) == (1, [])


CHANGES = {
    "a price": invoice("1", sale(), SaleLine("71053", "LANTERN", 6, 3_390_001, None), first_line=7),
    "the country": invoice("1", sale(), sale(), country="Iceland", first_line=7),
    "a line less": invoice("1", sale(), first_line=7),
    "one that is an adjustment now": invoice("1", sale(quantity=-6), first_line=7),
    "one that is both now": invoice("1", sale(), sale(), sale(quantity=-6), first_line=7),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("again_by", [ANA, BEN], ids=["the same actor", "another actor"])
def test_a_changed_invoice_is_an_error_with_its_line_and_the_rest_goes_on(
    log: MemoryLog, changed: Invoice, again_by: Actor
) -> None:
    imported(log, [invoice("1", sale(), sale())])
    facts = len(log.rows)
    again = imported(log, [changed, invoice("2")], actor=again_by)
    assert (again.imported, again.already_imported) == (1, 0)
    assert list(map(str, again.failed)) == ["invoice 1 (line 7) was imported before with other content"]
    assert {fact.envelope.key for fact in facts_of(log)[facts:]} == {"invoice-2"}, "nothing is written for it"


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("again_by", [ANA, BEN], ids=["the same actor", "another actor"])
def test_an_adjustment_that_became_something_else_is_an_error_too(
    log: MemoryLog, changed: Invoice, again_by: Actor
) -> None:
    imported(log, [invoice("1", sale(quantity=-1))])
    facts = len(log.rows)
    assert [failure.invoice for failure in imported(log, [changed], actor=again_by).failed] == ["1"]
    assert len(log.rows) == facts


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("beside", [ANA, BEN], ids=["the same actor", "another actor"])
def test_two_imports_at_once_record_each_invoice_once(log: MemoryLog, beside: Actor) -> None:
    """The second one runs to its end after the first has looked its batch up and recorded one invoice."""
    invoices = read_invoices(CORNERS)
    others: list[Summary] = []

    def meanwhile(lines: int) -> None:
        if not others:
            others.append(imported(log, invoices, actor=beside))

    first = import_invoices(handler_of(log), invoices, actor=ANA, currency="GBP", on_progress=meanwhile)
    assert (first.imported, first.already_imported, first.failed) == (1, len(invoices) - 1, [])
    assert (others[0].imported, others[0].already_imported) == (len(invoices) - 1, 1)
    alone = MemoryLog()
    imported(alone, invoices)
    assert content_of(log) == content_of(alone)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("beside", [ANA, BEN], ids=["the same actor", "another actor"])
def test_two_imports_at_once_of_other_content_do_not_both_succeed(log: MemoryLog, beside: Actor) -> None:
    def meanwhile(lines: int) -> None:
        imported(log, [invoice("1", sale(quantity=7))], actor=beside)

    first = import_invoices(
        handler_of(log), [invoice("0"), invoice("1")], actor=ANA, currency="GBP", on_progress=meanwhile
    )
    assert first.failed == [Failure("1", 2, CHANGED_REASON)]


def test_an_offer_that_somebody_listed_under_another_title_is_there(log: MemoryLog) -> None:
    handler = handler_of(log)
    handler.handle(ListOffer(offer="71053", title="LAMP"), by=ANA, key="offer-71053")
    handler.handle(ListOffer(offer="84077", title="GLIDERS"), by=BEN, key="k")
    summary = imported(log, [invoice("1", sale("71053"), sale("84077"))])
    assert (summary.imported, summary.failed) == (1, [])
    assert len(events_of(log, OfferListed)) == 2


# ── refusals and faults ───────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("together")
def test_a_refused_invoice_is_reported_and_the_rest_goes_on(log: MemoryLog) -> None:
    handler_of(log).handle(ListOffer(offer="rare", title="RARE", capacity=5), by=ANA, key="k")
    summary = imported(log, [invoice("1"), invoice("2", sale("rare", 6), first_line=3), invoice("3")])
    assert (summary.invoices, summary.imported) == (3, 2)
    (failure,) = summary.failed
    assert (failure.invoice, failure.line) == ("2", 3)
    assert "5 left, 6 asked for" in failure.reason
    assert imported(log, [invoice("1"), invoice("2", sale("rare", 6)), invoice("3")]).already_imported == 2


@pytest.mark.usefixtures("together")
def test_amounts_beyond_the_books_are_a_refusal_and_name_the_part_that_was_recorded(log: MemoryLog) -> None:
    endless = SaleLine("71053", "x", -(2**31 - 1), 10**18, None)
    summary = imported(log, [invoice("1", sale(), endless)])
    (failure,) = summary.failed
    assert failure.reason.startswith(f"was refused in part: {AmountTooLarge.title()}")


@pytest.mark.parametrize("lacking", sorted(PERMISSIONS))
def test_who_may_not_import_imports_nothing(log: MemoryLog, lacking: Permission) -> None:
    with pytest.raises(NotPermitted, match=lacking):
        imported(log, [invoice("1")], actor=Actor("shop", "ana", PERMISSIONS - {lacking}))
    assert not log.rows


class Fragile(MemoryLog):
    """Appends fail where `faults` says: before anything is recorded, or after, so that its answer is lost."""

    def __init__(self, faults: dict[int, str], fault: type[Exception] = LogUnavailable) -> None:
        super().__init__()
        self.faults, self.fault = faults, fault
        self.calls = count()

    def append(self, append: Append) -> Outcome:
        when = self.faults.get(next(self.calls))
        if when == "before":
            raise self.fault("gone")
        answer = super().append(append)
        if when == "after":
            raise self.fault("gone")
        return answer


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("fault", [LogUnavailable, Busy])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_fault_is_tried_again_within_a_limit(fault: type[Exception], when: str) -> None:
    invoices = read_invoices(CORNERS)
    shaken = Fragile(dict.fromkeys(range(0, 200, TRIES_MAX), when), fault)
    summary = imported(shaken, invoices)
    assert (summary.invoices, summary.failed, summary.stopped) == (len(invoices), [], None)
    alone = MemoryLog()
    imported(alone, invoices)
    assert facts_by_stream(shaken) == facts_by_stream(alone)


@pytest.mark.usefixtures("alone")
def test_a_log_that_stays_away_ends_the_import_which_says_how_far_it_came() -> None:
    away = Fragile(dict.fromkeys(range(5, 100), "before"))
    paused: list[float] = []
    summary = import_invoices(
        handler_of(away), read_invoices(CORNERS), actor=ANA, currency="GBP", pause=paused.append
    )
    assert len(paused) == TRIES_MAX - 1
    assert (summary.invoices, summary.imported) == (2, 2)
    assert summary.stopped == (
        "before invoice C600003 (line 6), 2 of 7 gone through: gone; import the same file again to continue"
    )


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("appends", range(16))
def test_an_import_cut_off_anywhere_is_continued_by_the_next(appends: int, when: str) -> None:
    invoices = read_invoices(CORNERS)
    cut = Fragile(dict.fromkeys(range(appends + 1, appends + 10), "before") | {appends: when})
    first = imported(cut, invoices)
    cut.faults = {}
    second = imported(cut, invoices)
    assert (second.invoices, second.stopped, second.failed) == (len(invoices), None, [])
    assert second.already_imported >= first.imported
    alone = MemoryLog()
    imported(alone, invoices)
    assert facts_by_stream(cut) == facts_by_stream(alone)


@pytest.mark.usefixtures("alone")
def test_an_import_that_is_asked_to_stop_stops_between_invoices(log: MemoryLog) -> None:
    asked = iter([False, False, True])
    summary = imported(log, read_invoices(CORNERS), stop=lambda: next(asked))
    assert (summary.invoices, summary.imported) == (2, 2)
    assert summary.stopped is not None
    assert "invoice C600003 (line 6)" in summary.stopped


def test_progress_adds_up_to_the_lines_and_batches_do_not_show(log: MemoryLog) -> None:
    many = [invoice(str(nth), sale(), sale()) for nth in range(BATCH_INVOICES + 1)]
    seen: list[int] = []
    summary = import_invoices(handler_of(log), many, actor=ANA, currency="GBP", on_progress=seen.append)
    assert seen == [2] * len(many)
    assert (summary.lines, summary.imported) == (2 * len(many), len(many))


def test_the_summary_is_json_of_these_keys(log: MemoryLog) -> None:
    imported(log, [invoice("1")])
    summary = imported(log, [invoice("1", sale(quantity=7))]).as_json()
    assert summary.pop("seconds") >= 0
    assert summary.pop("lines_per_s") >= 0
    assert summary == {
        "invoices": 1,
        "lines": 1,
        "imported": 0,
        "already_imported": 0,
        "failed": [{"invoice": "1", "line": 2, "reason": CHANGED_REASON}],
        "stopped": None,
    }


# ── on Postgres ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ledger(settings: Settings) -> Iterator[PostgresLog]:
    opened = PostgresLog(settings.role_dsn("app"), schema_of(settings), b"k" * 32)
    yield opened
    opened.close()


@pytest.mark.usefixtures("alone")
def test_a_small_file_is_imported_once_on_postgres(ledger: PostgresLog) -> None:
    invoices = read_invoices(CORNERS)
    assert imported(ledger, invoices, stop=iter([False] * 5 + [True]).__next__).imported == 5
    resumed = imported(ledger, invoices)
    assert (resumed.imported, resumed.already_imported) == (2, 5)
    changed = [*invoices[:-1], invoice("c600007", first_line=14)]
    again = imported(ledger, changed, actor=BEN)
    assert again.already_imported == len(invoices) - 1
    assert again.failed == [Failure("c600007", 14, CHANGED_REASON)]
    in_memory = MemoryLog()
    imported(in_memory, invoices)
    on_postgres = ledger.recorded("shop", 1, 1_000)
    assert sorted((r.stream, r.version, r.event.stored()) for r in on_postgres) == content_of(in_memory)
