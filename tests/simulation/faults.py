"""How unkind the world is just now: chances of faults and ranges of delays, all from one seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random


@dataclass(frozen=True, slots=True)
class Weather:
    """Probabilities of each fault, at each place where it may happen."""

    lost_before: float = 0.0
    """A request never arrives, and the connection is gone."""
    lost_after: float = 0.0
    """It was carried out, and the answer is lost with the connection."""
    dies_committing: float = 0.0
    """Whoever commits a transaction is killed, before or after it is done."""
    slow: float = 0.0
    """A delay is a hundred times as long."""
    broker_fails: float = 0.0
    """Publishing ends in an error; some of the records are in, perhaps all."""
    record_lost: float = 0.0
    record_twice: float = 0.0
    record_late: float = 0.0
    block_fails: float = 0.0
    """ClickHouse does not answer; the block may be in."""


CALM = Weather()


class Chance:
    """Delays and faults, drawn where they happen."""

    def __init__(self, random: Random, weather: Weather) -> None:
        self.random, self.weather = random, weather

    def calm_down(self) -> None:
        self.weather = CALM

    def happens(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def delay_s(self, usual_s: float) -> float:
        """Between a fifth of what is usual and twice as much; at times far longer."""
        delay_s = usual_s * (0.2 + 1.8 * self.random.random())
        return delay_s * 100 if self.happens(self.weather.slow) else delay_s


def weather_of(random: Random) -> Weather:
    """Each run has weather of its own: some faults often, some never."""
    worst = Weather(
        lost_before=0.02,
        lost_after=0.03,
        dies_committing=0.02,
        slow=0.02,
        broker_fails=0.06,
        record_lost=0.15,
        record_twice=0.2,
        record_late=0.15,
        block_fails=0.1,
    )
    names = Weather.__slots__
    share = {name: random.choice((0.0, 0.2, 1.0)) for name in names}
    return replace(worst, **{name: getattr(worst, name) * share[name] for name in names})
