"""The scenarios that only ours runs: one hot pool, an open loop, followers, the relay, the fold, growth."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from tests.benchmarks.log import ours
from tests.benchmarks.log.child import Child
from tests.benchmarks.log.contenders import CONTENDERS, OUR_LOG, RAW
from tests.benchmarks.log.lab import LIMIT_S, Lab, say
from tests.benchmarks.log.plan import FAST, Plan
from tests.benchmarks.log.summary import middle, ratio

FOLLOWED = {contender.name: contender for contender in CONTENDERS}
REQUESTS = {name: contender.append or {} for name, contender in FOLLOWED.items()}
SKIP_PAUSE_S = 0.001
SKIP_LAP_S = 2.0
SKIP_WRITERS = 8
"""Of each process."""
CONTROL_SHARE = 5
"""The control writes that much less: it skips within seconds."""
PRELOAD_S_MAX = 1_500.0
GROWTH_AT = 8
SOAK_LAP_S = 10.0


def hot(lab: Lab, plan: Plan) -> dict[str, Any]:
    """Commands that all decide on one pool, from one process and from several that share it."""
    alone = _sold(lab, plan, "hot", 1)
    together = _sold(lab, plan, "hot_processes", plan.hot_processes)
    return {
        "hot_per_s": middle(alone["rounds"]),
        "hot_4_processes_per_s": middle(together["rounds"]),
        "hot": {"concurrent": plan.hot_at, "alone": alone, "processes": together},
    }


def _sold(lab: Lab, plan: Plan, scenario: str, processes: int) -> dict[str, Any]:
    """A new pool each round. What was accepted has to be on record, or the round counts nothing."""
    rates: list[float | None] = []
    found: dict[str, Any] = {"rounds": rates, "wrong": [], "costs": []}
    with (
        lab.noting(scenario, f"ours, {processes} processes"),
        lab.our_processes(FAST, scenario, processes) as (dsn, children),
    ):
        for _ in lab.rounds(plan, scenario):
            pool = uuid4().hex
            children[0].ask("open_pool", LIMIT_S, pool=pool)
            with lab.followed(scenario, dsn, OUR_LOG) as backend:
                answers = _at_once(
                    children,
                    3 * plan.short_s + LIMIT_S,
                    do="hot",
                    pool=pool,
                    concurrent=plan.hot_at // processes,
                    seconds=plan.short_s,
                    server=lab.servers[FAST].pid,
                    besides=[backend],
                )
            accepted = sum(answer["accepted"] for answer in answers)
            stream = children[0].ask("stream", LIMIT_S, pool=pool)
            right = accepted + 1 == stream["facts"] == stream["version"]
            rates.append(sum(answer["per_s"] for answer in answers) if right else None)
            found["costs"].append(answers)
            if not right:
                found["wrong"].append({"accepted": accepted} | stream)
    return found


def paced(lab: Lab, plan: Plan) -> dict[str, Any]:
    """Saturation by the closed loop, and in the same round an open one at a share of it."""
    rounds = []
    with lab.our_processes(FAST, "paced") as (dsn, (child,)):
        for _ in lab.rounds(plan, "paced"):
            limit_s = 3 * plan.slice_s + LIMIT_S
            with lab.followed("paced", dsn, OUR_LOG):
                full = child.ask(limit_s=limit_s, **REQUESTS[ours.AT_64], concurrent=64, seconds=plan.short_s)
                per_s = full["per_s"] * plan.paced_share
                answer = child.ask("paced", limit_s, per_s=per_s, seconds=plan.slice_s)
            rounds.append(answer | {"per_s": per_s, "saturation_per_s": full["per_s"]})
    return {"p99_ms_at_70": middle([each["p99_ms"] for each in rounds]), "paced": {"rounds": rounds}}


def skipped(lab: Lab, plan: Plan) -> dict[str, Any]:
    """Two processes of ours write beside a follower; then a bare sequence is read alike, which skips."""
    with lab.our_processes(FAST, "skipped", 2) as (dsn, children):
        requests = [REQUESTS[ours.LIBRARY], REQUESTS[ours.ASYNC]]
        writing = list(zip(children, requests, strict=True))
        mine = _followed_writing(lab, "skipped", dsn, OUR_LOG, writing, plan.skip_events, plan.skip_s_max)
        query = FOLLOWED[ours.LIBRARY].committed
        found = lab.follower.ask("missing", 8 * LIMIT_S, name="skipped", query=query)
    raw = FOLLOWED[RAW]
    name, dsn = lab.database(FAST, "control")
    child = lab.process("control", raw.argv(dsn, lab.peers, lab.home))
    try:
        writing, events = [(child, REQUESTS[RAW])], plan.skip_events // CONTROL_SHARE
        bare = _followed_writing(lab, "control", dsn, raw.tail, writing, events, plan.skip_s_max)
        control = lab.follower.ask("missing", 8 * LIMIT_S, name="control", query=raw.committed)
    finally:
        child.close()
        lab.servers[FAST].drop(name)
    return {
        "skipped": found["skipped"],
        "control_skipped": control["skipped"],
        "skipping": {"ours": found | mine, "control": control | bare},
    }


def _followed_writing(
    lab: Lab,
    name: str,
    dsn: str,
    query: str,
    writing: list[tuple[Child, dict[str, Any]]],
    wanted: int,
    seconds_max: float,
) -> dict[str, Any]:
    """Until so many events are written, or the time is up."""
    began, events = time.monotonic(), 0
    with lab.followed(name, dsn, query, SKIP_PAUSE_S):
        while events < wanted and time.monotonic() - began < seconds_max:
            for child, request in writing:
                child.send(**request, concurrent=SKIP_WRITERS, seconds=SKIP_LAP_S)
            events += sum(child.answer(3 * SKIP_LAP_S + LIMIT_S)["commands"] for child, _ in writing)
    spent_s = time.monotonic() - began
    say(f"  {name}: {events:,} events in {spent_s:.0f} s")
    return {"written": events, "wanted": wanted, "seconds": round(spent_s, 1)}


def relay(lab: Lab, plan: Plan) -> dict[str, Any]:
    """From a preloaded log: what the relay publishes into nothing, and what one core decodes and folds."""
    facts = plan.relay_facts
    with lab.our_processes(FAST, "relay") as (_, (child,)):
        say(f"relay and fold: preloading {facts:,} facts")
        child.ask("preload", PRELOAD_S_MAX, facts=facts)
        relayed = [child.ask("relay", 10 * LIMIT_S, facts=facts) for _ in range(plan.rounds)]
        folded = [child.ask("fold", 10 * LIMIT_S, facts=facts) for _ in range(plan.rounds)]
    return {
        "relay_per_s": middle([each["per_s"] for each in relayed]),
        "fold_per_s_per_core": middle([each["per_s"] for each in folded]),
        "relay": {"facts": facts, "rounds": relayed},
        "fold": {"facts": facts, "rounds": folded},
    }


def growth(lab: Lab, plan: Plan) -> dict[str, Any]:
    """The same appends on a small log and on a large one, by turns."""
    if plan.growth_facts is None:
        return {}
    small, large = plan.growth_facts
    rates: dict[int, list[float | None]] = {small: [], large: []}
    loaded = {}
    server = lab.servers[FAST].pid
    with (
        lab.our_processes(FAST, "small") as (dsn_small, (one,)),
        lab.our_processes(FAST, "large") as (
            dsn_large,
            (other,),
        ),
    ):
        for facts, child in ((small, one), (large, other)):
            say(f"growth: preloading {facts:,} facts")
            loaded[facts] = child.ask("preload", PRELOAD_S_MAX, facts=facts)
        for _ in lab.rounds(plan, "growth"):
            for facts, dsn, child in ((small, dsn_small, one), (large, dsn_large, other)):
                with lab.followed(f"growth {facts}", dsn, _from(OUR_LOG, facts)) as backend:
                    answer = child.ask(
                        limit_s=3 * plan.slice_s + LIMIT_S,
                        **REQUESTS[ours.AT_8],
                        concurrent=GROWTH_AT,
                        seconds=plan.slice_s,
                        server=server,
                        besides=[backend],
                    )
                rates[facts].append(answer["per_s"])
    return {
        "growth_rate_large_to_small": ratio(rates[large], rates[small]),
        "growth": {"rounds": {str(facts): each for facts, each in rates.items()}, "preloaded": loaded},
    }


def soak(lab: Lab, plan: Plan) -> dict[str, Any]:
    """Appends without a pause: whether the one row that each of them updates grows, or slows them."""
    if plan.soak_s is None:
        return {}
    laps = []
    with lab.our_processes(FAST, "soak") as (dsn, (child,)):
        began = time.monotonic()
        say(f"soak of {plan.soak_s:.0f} s")
        with lab.followed("soak", dsn, OUR_LOG):
            while time.monotonic() - began < plan.soak_s:
                answer = child.ask(
                    limit_s=3 * SOAK_LAP_S + LIMIT_S,
                    **REQUESTS[ours.AT_64],
                    concurrent=64,
                    seconds=SOAK_LAP_S,
                )
                laps.append({"per_s": answer["per_s"]} | child.ask("head", LIMIT_S))
    tenth = max(len(laps) // 10, 1)
    return {
        "head_bytes_max": max(lap["bytes"] for lap in laps),
        "head_dead_tuples_max": max(lap["dead_tuples"] for lap in laps),
        "soak_rate_end_to_begin": (middle([lap["per_s"] for lap in laps[-tenth:]]) or 0)
        / (middle([lap["per_s"] for lap in laps[:tenth]]) or 1),
        "soak": {"seconds": plan.soak_s, "laps": laps},
    }


def _from(query: str, position: int) -> str:
    """The same pages, from there on."""
    return query.replace("notification_id > %b", f"notification_id > greatest(%b, {position})")


def _at_once(children: list[Child], limit_s: float, **request: Any) -> list[dict[str, Any]]:
    for child in children:
        child.send(**request)
    return [child.answer(limit_s) for child in children]
