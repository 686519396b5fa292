"""`python -m tests.simulation`: many seeds, each a run of the whole system; how to replay what failed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.planted import BUGS, Bug
from tests.simulation.run import Outcome, run
from tests.simulation.shrink import shrink
from tests.simulation.world import Planted, sound

REQUESTS = 200
CHUNK = 4


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    began = time.monotonic()
    seeds = [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.seeds)
    outcomes: list[Outcome] = []
    planted = BUGS[asked.planted] if asked.planted else sound
    one = partial(_outcome, requests=asked.requests, planted=asked.planted)
    for outcome in _outcomes(seeds, one, asked.processes):
        outcomes.append(outcome)
        if sys.stderr.isatty():
            print(f"\r{len(outcomes)} of {len(seeds)}", end="", file=sys.stderr, flush=True)
        if outcome.invariant:
            _tell(outcome, asked.requests, planted, minimal=not asked.whole)
    failed = [outcome for outcome in outcomes if outcome.invariant]
    took_s = time.monotonic() - began
    total = {
        "seeds": len(outcomes),
        "failed": [outcome.seed for outcome in failed],
        "requests": sum(outcome.requests for outcome in outcomes),
        "facts": sum(outcome.facts for outcome in outcomes),
        "steps": sum(outcome.steps for outcome in outcomes),
        "simulated_s": round(sum(outcome.virtual_s for outcome in outcomes), 1),
        "took_s": round(took_s, 1),
    }
    print(json.dumps(total) if asked.json else _sentence(total))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="at least so many in each run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="do not look for the least that still fails")
    parser.add_argument("--planted", choices=sorted(BUGS), help="with this bug, made on purpose")
    parser.add_argument("--json", action="store_true", help="the last line as JSON")
    return parser


def _outcome(seed: int, requests: int, planted: str | None) -> Outcome:
    return run(seed, requests, BUGS[planted] if planted else sound)


def _outcomes(seeds: Sequence[int], one: Callable[[int], Outcome], processes: int) -> Iterator[Outcome]:
    if processes == 1 or len(seeds) == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(one, seeds, chunksize=CHUNK)


def _tell(outcome: Outcome, requests: int, planted: Planted, *, minimal: bool) -> None:
    also = f" --planted {planted.name}" if isinstance(planted, Bug) else ""
    print(f"\nseed {outcome.seed}: {outcome.invariant}\n  {outcome.found[:2_000]}")
    print(f"  again: python -m tests.simulation --seed {outcome.seed} --requests {requests}{also}")
    if minimal:
        least = shrink(outcome.seed, requests, outcome.invariant, planted)
        print(f"  the least that still fails, {len(least.steps)} steps: {least.found[:2_000]}")
        for step in least.steps:
            print(f"    {step}")


def _sentence(total: dict[str, object]) -> str:
    failed = total["failed"]
    assert isinstance(failed, list)
    said = f"{len(failed)} failed: {failed}" if failed else "none failed"
    return (
        f"{total['seeds']} seeds, {total['requests']} requests, {total['facts']} facts,"
        f" {total['steps']} steps, {total['simulated_s']} s simulated in {total['took_s']} s: {said}"
    )


if __name__ == "__main__":
    sys.exit(main())
