"""The relay behind a bus that drops, doubles and reorders records: `python -m tests.e2e.lossy_relay`.

Stands where a bad network and a bad broker would: between the relay, which believes all was acknowledged, and
Kafka. Whole records are dropped, now and then all of a while, so that silence follows what was lost;
they are doubled, at once and later; and held back over several publications.
"""

from __future__ import annotations

import asyncio
import os
import random

from infra.bus import Bus
from infra.ledger import DATABASE_FAULTS
from infra.runtime import Runtime, run_role
from streams.relay import RETRY_S, Relay
from streams.topics import PARTITIONS, topics

SEED = "COUNTERFOIL_TEST_SEED"
Record = tuple[str, int, bytes]


class LossyBus(Bus):
    """Of each record: lost, sent twice, sent later, or as it should be."""

    lost = doubled = delayed = 0

    def __init__(self, bootstrap: str, chance: random.Random) -> None:
        super().__init__(bootstrap, topics("0"), PARTITIONS)
        self.chance = chance
        self.held_back: list[Record] = []

    def publish(self, records: list[Record]) -> None:  # type: ignore[override]
        super().publish(self.distorted(records))

    def distorted(self, records: list[Record]) -> list[Record]:
        chance = self.chance
        if chance.random() < 0.1:  # a whole publication; with luck nothing follows it for a while
            self.lost += len(records)
            return []
        out: list[Record] = []
        for record in records:
            fate = chance.random()
            if fate < 0.15:
                self.lost += 1
            elif fate < 0.30:
                self.doubled += 1
                out += [record, record]
                self.held_back.append(record)
            elif fate < 0.45:
                self.delayed += 1
                self.held_back.append(record)
            else:
                out.append(record)
        chance.shuffle(self.held_back)
        late = chance.randint(0, len(self.held_back))
        out += self.held_back[:late]
        del self.held_back[:late]
        chance.shuffle(out)
        return out


async def main(runtime: Runtime) -> None:
    bus = LossyBus(runtime.kafka, random.Random(int(os.environ[SEED])))
    while True:
        ledger = runtime.ledger()
        try:
            await Relay(runtime.settings.ledger, ledger, bus).run()
        except DATABASE_FAULTS:
            await asyncio.sleep(RETRY_S)
        finally:
            print(f"lost {bus.lost}, doubled {bus.doubled}, delayed {bus.delayed}", flush=True)
            await ledger.close()


if __name__ == "__main__":
    run_role("relay", main)
