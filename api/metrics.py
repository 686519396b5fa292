"""What Prometheus may ask: requests by route, and how far every projection is."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from infra.queries import Readiness

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
OTHER = "OTHER"
"""A method that somebody made up: each would be a series of its own."""


class Metrics:
    """Of one process. Series are named after what is in the code, never after what a client has sent."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Counter(
            "counterfoil_http_requests", "Answers.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "counterfoil_http_request_seconds",
            "From a request's headers to its answer's last byte.",
            ["method", "route"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.registry = registry

    def answered(self, method: str, route: str, status: int, spent_s: float) -> None:
        method = method if method in METHODS else OTHER
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(spent_s)

    def text(self, standing: Sequence[tuple[str, Readiness]]) -> bytes:
        """In Prometheus' own format; `standing` is each ledger's name and state, as of now."""
        now = CollectorRegistry()
        position = Gauge("counterfoil_log_position", "The log's last position.", ["ledger"], registry=now)
        through = Gauge("counterfoil_relay_through", "Published up to here.", ["ledger"], registry=now)
        engine = Gauge("counterfoil_engine_up", "1 if it answers.", ["ledger", "engine"], registry=now)
        names = ["ledger", "engine", "projection"]
        complete = Gauge("counterfoil_projection_position", "Complete through here.", names, registry=now)
        lag = Gauge("counterfoil_projection_lag_facts", "Facts still to be taken in.", names, registry=now)
        lag_s = Gauge("counterfoil_projection_lag_seconds", "Age of the oldest of them.", names, registry=now)
        parked = Gauge("counterfoil_projection_parked", "Facts that wait for a repair.", names, registry=now)
        for ledger, state in standing:
            position.labels(ledger).set(state.position)
            through.labels(ledger).set(state.through)
            for name, up in state.engines.items():
                engine.labels(ledger, name).set(up)
            for each in state.lags:
                where = (ledger, each.engine, each.projection)
                complete.labels(*where).set(each.complete_through)
                lag.labels(*where).set(each.lag)
                if each.lag_s is not None:
                    lag_s.labels(*where).set(each.lag_s)
                parked.labels(*where).set(each.parked)
        return generate_latest(self.registry) + generate_latest(now)
