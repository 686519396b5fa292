"""The scenarios that peers run too: one event a command, and load + decide + append."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tests.benchmarks.log import ours
from tests.benchmarks.log.contenders import CONTENDERS, EMMETT, PEERS, RAW, STOCK, Contender
from tests.benchmarks.log.lab import Lab
from tests.benchmarks.log.plan import FAST, SLOW, Plan
from tests.benchmarks.log.summary import middle, ratio, voided

Answers = dict[str, list[dict[str, Any] | None]]
"""By contender, one a round."""
Cell = dict[str, Any]


def column(rounds: list[dict[str, Any] | None], key: str) -> list[float | None]:
    return [None if each is None else each[key] for each in rounds]


def summed(answers: Answers, floor: str, voiding: bool) -> Cell:
    """A cell's report: rates by round, medians, costs; `void` lists the rounds that do not count."""
    rates = {name: column(rounds, "per_s") for name, rounds in answers.items()}
    void = voided(rates[floor]) if voiding and floor in rates else []
    return {
        "void_rounds": void,
        "contenders": {
            name: {
                "per_s": middle(rates[name], void),
                "rounds": rates[name],
                "to_floor": ratio(rates[name], rates[floor], void) if floor in rates else None,
                "client_cpu_us": middle(column(rounds, "client_cpu_us"), void),
                "server_cpu_us": middle(column(rounds, "server_cpu_us"), void),
            }
            for name, rounds in answers.items()
        },
    }


def between(cell: Cell | None, over: str, under: str) -> float | None:
    """The ratio of two contenders in a cell; None where one has not run."""
    if cell is None or over not in cell["contenders"] or under not in cell["contenders"]:
        return None
    contenders = cell["contenders"]
    return ratio(contenders[over]["rounds"], contenders[under]["rounds"], cell["void_rounds"])


def append(lab: Lab, plan: Plan) -> dict[str, Any]:
    """Every contender in every cell, round after round; then whether each follower got everything."""
    answers: dict[tuple[str, int], Answers] = defaultdict(lambda: defaultdict(list))
    racers = [contender for contender in CONTENDERS if contender.append is not None]
    for nth in lab.rounds(plan, "append"):
        for cell in plan.cells:
            server, concurrent = cell
            for contender in _turned(racers, nth):
                long = cell in plan.headline and contender.name not in PEERS
                seconds = plan.slice_s if long else plan.short_s
                request = {**(contender.append or {}), "concurrent": concurrent}
                answers[cell][contender.name].append(lab.slice("append", server, contender, request, seconds))
    delivered = {}
    for contender in racers:
        for server in (FAST, SLOW):
            if (found := lab.delivered(server, contender)) is not None:
                delivered[f"{contender.name}, {server}"] = found
            lab.over(server, contender)
    cells = {
        f"{server}, {concurrent}": summed(dict(found), RAW, not plan.quick)
        for (server, concurrent), found in answers.items()
    }
    at_8, at_8_slow = cells.get(f"{FAST}, 8"), cells.get(f"{SLOW}, 8")
    at_64, at_64_slow = cells.get(f"{FAST}, 64"), cells.get(f"{SLOW}, 64")
    costs = (at_64 or {"contenders": {}})["contenders"].get(ours.AT_64, {})
    return {
        "append_vs_stock_8": between(at_8, ours.AT_8, STOCK),
        "append_vs_raw_8": between(at_8, ours.AT_8, RAW),
        "append_vs_raw_8_1ms": between(at_8_slow, ours.AT_8, RAW),
        "library_append_vs_raw_8": between(at_8, ours.LIBRARY, RAW),
        "library_append_vs_stock_8": between(at_8, ours.LIBRARY, STOCK),
        "async64_vs_stock_1ms": between(at_64_slow, ours.AT_64, STOCK),
        "client_cpu_us_64": costs.get("client_cpu_us"),
        "server_cpu_us_64": costs.get("server_cpu_us"),
        "append": {"cells": cells, "delivered": delivered},
    }


def decide(lab: Lab, plan: Plan) -> dict[str, Any]:
    """Streams of about ten events; states are loaded for every command but by the contender named warm."""
    answers: Answers = defaultdict(list)
    racers = [contender for contender in CONTENDERS if contender.decide is not None]
    for nth in lab.rounds(plan, "decide"):
        for contender in _turned(racers, nth):
            request = {**(contender.decide or {}), "concurrent": plan.decide_at}
            answers[contender.name].append(lab.slice("decide", FAST, contender, request, plan.slice_s))
    for contender in racers:
        lab.over(FAST, contender)
    cell = summed(dict(answers), STOCK, not plan.quick)
    return {
        "load_append_vs_emmett_8": between(cell, ours.DECIDES, EMMETT),
        "load_append_vs_stock_8": between(cell, ours.DECIDES, STOCK),
        "async_load_append_vs_emmett_8": between(cell, ours.ASYNC, EMMETT),
        "async_load_append_vs_stock_8": between(cell, ours.ASYNC, STOCK),
        "load_append_warm_vs_emmett_8": between(cell, f"{ours.ASYNC}, warm", EMMETT),
        "load_append_warm_vs_stock_8": between(cell, f"{ours.ASYNC}, warm", STOCK),
        "decide": cell,
    }


def _turned(racers: list[Contender], nth: int) -> list[Contender]:
    """Each round begins with another one, so that nobody always follows the same neighbour."""
    first = nth % len(racers)
    return racers[first:] + racers[:first]
