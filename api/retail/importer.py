"""A shop's invoices as commands: which papers each becomes, under which ids and keys, and each only once.

An invoice number stands for the same papers for ever. Before anything is asked, the log is looked at: papers
with this content are "already imported", whoever brought them; with other content the invoice is an error.
Keys and rules say the same to two imports that run at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID, uuid5

from api.retail.file import Invoice, SaleLine
from commands.capacity import AdjustStock
from commands.catalog import ListOffer
from commands.handling import Actor, Answer, Ask, Command, Handler, KeyReused, NotPermitted
from commands.log import Busy
from commands.ordering import PlaceOrder, ReturnGoods
from commands.payments import AdjustBadDebt
from domain.capacity import AdjustmentExists, AdjustmentRecorded
from domain.catalog import Document, Line, OfferAlreadyListed, OfferListed
from domain.ordering import GoodsReturned, OrderExists, OrderPlaced, ReturnExists
from domain.payments import BadDebtAdjusted, PaymentExists
from domain.refusals import Refusal
from domain.values import AdjustmentId, OrderId, PaymentId, Permission, ReturnId
from infra.connection import LogUnavailable

NAMESPACE = UUID("0f0a4a1e-6d0b-5c5e-8b57-3f6a5d6e9c11")
"""Of the ids of imported papers: a constant of the format, never to change."""
RETURN = re.compile(r"C.*")
DEBT = re.compile(r"A.*")
"""As the tills write them, with a capital. Anything else, `c536379` too, is an order."""
CHARGES = frozenset(
    {
        "POST",  # postage
        "DOT",  # postage of the web shop's resellers
        "C2",  # carriage
        "M",  # written in by hand
        "D",  # discount
        "S",  # samples
        "B",  # bad debt
        "CRUK",  # commission of a charity
        "BANK CHARGES",
        "AMAZONFEE",
        "ADJUST",
        "ADJUST2",
    }
)
"""Codes that are money without goods, in any letter case; gift vouchers and test products are goods."""
REASON_UNSPECIFIED = "unspecified"
PERMISSIONS = frozenset(
    {
        Permission.OFFER_LIST,
        Permission.ORDER_PLACE,
        Permission.GOODS_RETURN,
        Permission.STOCK_ADJUST,
        Permission.DEBT_ADJUST,
    }
)
"""What an actor needs to import."""

BATCH_INVOICES = 200
"""Looked up in the log in one round trip."""
TOGETHER_INVOICES = 20
"""Recorded together, and counted together on the way: about 400 facts, so a commit or two."""
TRIES_MAX = 4
"""Of one call that meets a fault; the log itself waits 15 s each time for a database that is gone."""
PAUSE_S = 0.5
FAULTS = (Busy, LogUnavailable)
LISTED = (KeyReused, OfferAlreadyListed)
"""Somebody lists it already."""
CHANGED = (KeyReused, OrderExists, ReturnExists, AdjustmentExists, PaymentExists)
CHANGED_REASON = "was imported before with other content"

T = TypeVar("T")


# ── what an invoice becomes ───────────────────────────────────────────────────────────────────────


class Paper(StrEnum):
    """What an invoice can become; the value begins the name of its stream."""

    ORDER = "order"
    RETURN = "return"
    STOCK = "adjustment"
    DEBT = "payment"


def papers_of(invoice: Invoice) -> dict[Paper, Sequence[SaleLine]]:
    """One paper, or two where an order also has lines that sell nothing; every line is on one."""
    if RETURN.fullmatch(invoice.number):
        return {Paper.RETURN: invoice.lines}
    if DEBT.fullmatch(invoice.number):
        return {Paper.DEBT: invoice.lines}
    papers = {
        Paper.ORDER: [line for line in invoice.lines if line.quantity > 0],
        Paper.STOCK: [line for line in invoice.lines if line.quantity <= 0],
    }
    return {paper: lines for paper, lines in papers.items() if lines}


def commands_of(invoice: Invoice, tenant: str, currency: str) -> list[tuple[str, Command]]:
    """The commands that record an invoice, each with its idempotency key.

    All carry the digest of the whole invoice: however it was changed, the first key meets another body.
    """
    document = Document(
        number=invoice.number,
        digest=invoice.digest(),
        customer=invoice.customer,
        country=invoice.country,
        currency=currency,
        placed_at=invoice.placed_at,
    )
    key = f"invoice-{invoice.number}"
    return [
        (
            key if nth == 0 else f"{key}-stock",
            _command(paper, paper_id(tenant, invoice.number, paper), document, lines),
        )
        for nth, (paper, lines) in enumerate(papers_of(invoice).items())
    ]


def titles_of(invoices: Iterable[Invoice]) -> dict[str, str]:
    """What each code is called: its first description on an order or a return; elsewhere that is a reason."""
    titles: dict[str, str] = {}
    for invoice in invoices:
        returned = RETURN.fullmatch(invoice.number)
        for line in invoice.lines:
            if line.description and line.code not in titles and (returned or line.quantity > 0):
                titles[line.code] = line.description
    return titles


def _offer_key(code: str) -> str:
    return f"offer-{code}"


def is_charge(code: str) -> bool:
    return code.upper() in CHARGES


def _command(paper: Paper, paper_id: UUID, document: Document, lines: Sequence[SaleLine]) -> Command:
    match paper:
        case Paper.ORDER:
            return PlaceOrder(
                order_id=OrderId(paper_id), document=document, lines=_lines(lines), settled=True
            )
        case Paper.RETURN:
            return ReturnGoods(return_id=ReturnId(paper_id), document=document, lines=_lines(lines))
        case Paper.STOCK:
            reasoned = _lines(lines, REASON_UNSPECIFIED)
            return AdjustStock(adjustment_id=AdjustmentId(paper_id), document=document, lines=reasoned)
        case Paper.DEBT:
            return AdjustBadDebt(payment_id=PaymentId(paper_id), document=document, lines=_lines(lines))


def _lines(lines: Sequence[SaleLine], untitled: str | None = None) -> tuple[Line, ...]:
    return tuple(
        Line(
            code=line.code,
            title=line.description or untitled or line.code,
            quantity=line.quantity,
            unit_price_micro=line.unit_price_micro,
            charge=is_charge(line.code),
            placed_at=line.placed_at,
        )
        for line in lines
    )


@lru_cache(maxsize=4_096)  # looked up, then recorded: each is wanted several times within a batch
def paper_id(tenant: str, number: str, paper: Paper) -> UUID:
    return uuid5(
        uuid5(NAMESPACE, tenant), f"invoice {number} stock" if paper is Paper.STOCK else f"invoice {number}"
    )


def _stream(tenant: str, number: str, paper: Paper) -> str:
    return f"{paper}-{paper_id(tenant, number, paper)}"


# ── the import ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Failure:
    """An invoice that was refused, all or in part; `line` is where the file has its first line."""

    invoice: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"invoice {self.invoice} (line {self.line}) {self.reason}"


@dataclass(slots=True)
class Summary:
    """How far an import came; what it counts is in the log and stays there."""

    invoices: int = 0
    """Gone through: imported, already imported or failed."""
    lines: int = 0
    """Of those invoices."""
    imported: int = 0
    already_imported: int = 0
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str | None = None
    """Why it ended before the last invoice, if it did; importing the same file again continues."""

    @property
    def lines_per_s(self) -> float:
        return self.lines / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"lines_per_s": round(self.lines_per_s, 1), "seconds": round(self.seconds, 3)}


class Halted(Exception):
    """Internal: the log cannot be reached, so the import cannot go on."""


def import_invoices(
    handler: Handler,
    invoices: Sequence[Invoice],
    *,
    actor: Actor,
    currency: str,
    on_progress: Callable[[int], None] = lambda lines: None,
    stop: Callable[[], bool] = lambda: False,
    pause: Callable[[float], None] = time.sleep,
) -> Summary:
    """Record invoices, some at a time, those that are not recorded yet.

    A refused invoice is reported and the rest goes on; a fault is tried again, then the import stops and says
    where. `on_progress` gets the number of lines that were gone through since its last call, `stop` is asked
    before each few invoices. Raises NotPermitted, before anything is recorded.
    """
    if missing := PERMISSIONS - actor.permissions:
        raise NotPermitted(f"{', '.join(sorted(missing))} needed to import")
    running = _Import(handler, actor, currency, titles_of(invoices), pause)
    summary, began = Summary(), time.monotonic()
    for invoice, outcome in running.outcomes(invoices, stop):
        summary.invoices += 1
        summary.lines += len(invoice.lines)
        match outcome:
            case Failure():
                summary.failed.append(outcome)
            case True:
                summary.imported += 1
            case False:
                summary.already_imported += 1
        on_progress(len(invoice.lines))
    summary.seconds = time.monotonic() - began
    if running.halted is not None and summary.invoices < len(invoices):
        waiting = invoices[summary.invoices]
        summary.stopped = (
            f"before invoice {waiting.number} (line {waiting.first_line}), "
            f"{summary.invoices:,} of {len(invoices):,} gone through: {running.halted}; "
            "import the same file again to continue"
        )
    return summary


class _Import:
    def __init__(
        self,
        handler: Handler,
        actor: Actor,
        currency: str,
        titles: Mapping[str, str],
        pause: Callable[[float], None],
    ) -> None:
        self.handler, self.actor, self.currency = handler, actor, currency
        self.titles, self.pause = titles, pause
        self.listed: set[str] = set()
        """Codes known to be offered."""
        self.halted: str | None = None

    def outcomes(
        self, invoices: Sequence[Invoice], stop: Callable[[], bool]
    ) -> Iterable[tuple[Invoice, bool | Failure]]:
        """Each invoice with what came of it: newly recorded, recorded before, or refused."""
        try:
            for first in range(0, len(invoices), BATCH_INVOICES):
                batch = invoices[first : first + BATCH_INVOICES]
                on_file = self._look_up(batch)
                for few in _together(batch):
                    if stop():
                        self.halted = "it was asked to stop"
                        return
                    yield from self._record(few, on_file)
        except Halted as halted:
            self.halted = str(halted)

    def _look_up(self, batch: Sequence[Invoice]) -> dict[str, Document]:
        """What is on file by stream, of any kind of paper that an invoice number can have."""
        tenant = self.actor.tenant
        streams = {_stream(tenant, invoice.number, paper): 0 for invoice in batch for paper in Paper}
        codes = {line.code for invoice in batch for line in invoice.lines} - self.listed
        streams.update({f"offer-{code}": 0 for code in codes if not is_charge(code)})
        on_file: dict[str, Document] = {}
        for recorded in self._insisting(lambda: self.handler.log.read(tenant, streams)):
            match recorded.event:
                case OfferListed(offer=code):
                    self.listed.add(code)
                case OrderPlaced() | GoodsReturned() | AdjustmentRecorded() | BadDebtAdjusted() as paper:
                    on_file[recorded.stream] = paper.document
        return on_file

    def _record(
        self, invoices: Sequence[Invoice], on_file: Mapping[str, Document]
    ) -> Iterable[tuple[Invoice, bool | Failure]]:
        """Several at once: the offers they need, their papers, then the second one that the last may have."""
        known = [self._on_file(invoice, on_file) for invoice in invoices]
        due = [invoice for invoice, already in zip(invoices, known, strict=True) if already is None]
        offers = [request for invoice in due for request in self._offers(invoice)]
        papers = [self._papers(invoice) for invoice in due]
        answers = self._handle(offers + [first for first, *_ in papers])
        unlisted = {
            request.key: answer
            for request, answer in zip(offers, answers, strict=False)
            if isinstance(answer, Refusal) and not isinstance(answer, LISTED)
        }
        outcomes = [[answer] for answer in answers[len(offers) :]]
        if outcomes and isinstance(outcomes[-1][0], Answer):
            outcomes[-1] += self._handle(papers[-1][1:])
        told = iter(zip(due, outcomes, strict=True))
        for invoice, already in zip(invoices, known, strict=True):
            yield invoice, _outcome(*next(told), unlisted) if already is None else already

    def _on_file(self, invoice: Invoice, on_file: Mapping[str, Document]) -> bool | Failure | None:
        """False or a Failure where it is recorded already, None where it is not, or not all of it."""
        streams = {paper: _stream(self.actor.tenant, invoice.number, paper) for paper in Paper}
        documents = [on_file[stream] for stream in streams.values() if stream in on_file]
        if not documents:
            return None
        digest = invoice.digest()
        for document in documents:
            if document.digest != digest:
                return Failure(invoice.number, invoice.first_line, CHANGED_REASON)
            if document.currency != self.currency:
                reason = f"was imported before in {document.currency}, not {self.currency}"
                return Failure(invoice.number, invoice.first_line, reason)
        if all(streams[paper] in on_file for paper in papers_of(invoice)):
            return False
        return None  # an import ended between its papers

    def _papers(self, invoice: Invoice) -> list[Ask]:
        commands = commands_of(invoice, self.actor.tenant, self.currency)
        return [Ask(command, self.actor, key) for key, command in commands]

    def _offers(self, invoice: Invoice) -> Iterable[Ask]:
        """List what the invoice moves and nobody offers yet; another title, or another actor, is as good."""
        if DEBT.fullmatch(invoice.number):
            return
        for code in dict.fromkeys(line.code for line in invoice.lines):
            if code in self.listed or is_charge(code):
                continue
            self.listed.add(code)
            title = self.titles.get(code, code)
            yield Ask(ListOffer(offer=code, title=title), self.actor, _offer_key(code))

    def _handle(self, requests: Sequence[Ask]) -> list[Answer | Refusal]:
        """Where one met a fault it is asked again, and so is what was refused: it may need that one."""
        answers: dict[int, Answer | Exception] = {}

        def ask() -> None:
            waiting = [nth for nth in range(len(requests)) if not isinstance(answers.get(nth), Answer)]
            told = self.handler.handle_all([requests[nth] for nth in waiting])
            answers.update(zip(waiting, told, strict=True))
            for answer in told:
                if isinstance(answer, Exception) and not isinstance(answer, Refusal):
                    raise answer

        if requests:
            self._insisting(ask)
        return [answer for answer in answers.values() if isinstance(answer, Answer | Refusal)]

    def _insisting(self, call: Callable[[], T]) -> T:
        for attempt in range(1, TRIES_MAX):
            try:
                return call()
            except FAULTS:
                self.pause(PAUSE_S * attempt)
        try:
            return call()
        except FAULTS as fault:
            raise Halted(str(fault)) from fault


def _together(invoices: Sequence[Invoice]) -> Iterable[Sequence[Invoice]]:
    """Few enough to be recorded at once; only the last of them may have a second paper."""
    few: list[Invoice] = []
    for invoice in invoices:
        few.append(invoice)
        if len(few) >= TOGETHER_INVOICES or len(papers_of(invoice)) > 1:
            yield few
            few = []
    if few:
        yield few


def _outcome(
    invoice: Invoice, answers: Sequence[Answer | Refusal], unlisted: Mapping[str, Refusal]
) -> bool | Failure:
    """True where something was recorded, False where all of it had been."""
    fresh = any(isinstance(each, Answer) and each.facts and not each.replayed for each in answers)
    refusals = [each for each in answers if isinstance(each, Refusal)]
    if not refusals:
        return fresh
    keys = [_offer_key(line.code) for line in invoice.lines]
    refusal = next((unlisted[key] for key in keys if key in unlisted), refusals[0])
    if isinstance(refusal, CHANGED):
        return Failure(invoice.number, invoice.first_line, CHANGED_REASON)
    what = "was refused in part" if fresh else "was refused"
    return Failure(invoice.number, invoice.first_line, f"{what}: {refusal.title()} ({refusal})")
