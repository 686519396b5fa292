"""A client of the HTTP API that does as it should: one key a request, and again until it is answered."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.e2e.chaos.system import System

TENANT = "caller"
CURRENCY = "EUR"
"""Not the file's, so that its figures stay what is published."""
PAUSE_S = 0.15
PATIENCE_S = 60.0


class Caller(threading.Thread):
    """Places orders through the API until it is told to stop; `fault` says what it had to see."""

    def __init__(self, made: System) -> None:
        super().__init__(daemon=True)
        self.made = made
        self.stopping = threading.Event()
        self.placed = self.again = self.read = 0
        self.fault: str | None = None
        settings = made.settings
        self.headers = {"Authorization": f"Bearer {settings.api_token()}", "Counterfoil-Tenant": TENANT}

    def run(self) -> None:
        try:
            with httpx.Client(base_url=str(self.made.running.api), timeout=30) as client:
                while not self.stopping.is_set():
                    self._place(client, self.placed)
                    time.sleep(PAUSE_S)
        except AssertionError as wrong:
            self.fault = str(wrong)
        except Exception as broken:  # noqa: BLE001  told to the test, which fails with it
            self.fault = repr(broken)

    def _place(self, client: httpx.Client, number: int) -> None:
        body = {
            "document": f"E{number}",
            "country": "EIRE",
            "currency": CURRENCY,
            "placed_at": "2010-12-24T12:00:00",
            "lines": [
                {"code": "CALL", "title": "a call", "quantity": 1, "unit_price": "0.25", "charge": True}
            ],
            "settled": True,
        }
        key = {"Idempotency-Key": f"call-{number}"}
        answer = self._answered(lambda: client.post("/api/v1/orders", json=body, headers=self.headers | key))
        assert answer.status_code in (200, 201), f"{answer.status_code} {answer.text[:300]}"
        receipt = answer.json()
        with self.made.called.open("a") as notes:
            notes.write(f"{TENANT}\t{key['Idempotency-Key']}\t{receipt['position'].rpartition(':')[2]}\n")
        self.placed += 1
        if number % 5 == 0:
            fresh = {"Counterfoil-At-Least": receipt["position"], "Prefer": "wait=10"}
            path = f"/api/v1/orders/{receipt['id']}"
            answer = self._answered(lambda: client.get(path, headers=self.headers | fresh))
            assert answer.status_code == 200, f"its own order: {answer.status_code} {answer.text[:300]}"
            self.read += 1

    def _answered(self, ask: Any) -> httpx.Response:
        """Neither 5xx nor a broken connection is an answer."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer: httpx.Response = ask()
                if answer.status_code < 500:
                    return answer
            self.again += 1
            assert time.monotonic() < deadline, "the API does not come back"
            time.sleep(0.3)


@contextmanager
def calling(made: System) -> Iterator[Caller]:
    caller = Caller(made)
    caller.start()
    try:
        yield caller
    finally:
        caller.stopping.set()
        caller.join(PATIENCE_S + 10)
    assert caller.fault is None, caller.fault
