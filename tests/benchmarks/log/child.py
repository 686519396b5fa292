"""A contender's process as the bench sees it: asked one thing at a time, each within a limit."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.engines.server import tail
from infra.engines.tether import tethered

READY_S_MAX = 60.0
END_S_MAX = 2.0
CHUNK = 1 << 16


class Failed(Exception):
    """A contender that did not answer, or answered that it could not: no rate, and the rest goes on."""


class Child:
    """Speaks tests/benchmarks/log/wire.py. Dies with the bench."""

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log = name, log
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                tethered(list(argv), parent_pid=os.getpid()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=dict(os.environ) | dict(environment or {}),
                start_new_session=True,
                bufsize=0,
            )
        self.left = b""
        try:
            self.ready: dict[str, Any] = self._answer(READY_S_MAX)["ready"]
        except Failed:
            self.close()
            raise

    def ask(self, do: str, limit_s: float, **request: Any) -> dict[str, Any]:
        """Raises Failed, and then the process is gone if it was the time that ran out."""
        self.send(do, **request)
        return self.answer(limit_s)

    def send(self, do: str, **request: Any) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
        except OSError as gone:
            raise Failed(f"{self.name} has ended: {self._end()}") from gone

    def answer(self, limit_s: float) -> dict[str, Any]:
        answer = self._answer(limit_s)
        if "fault" in answer:
            raise Failed(f"{self.name}: {answer['fault'][:500]}")
        return answer

    def close(self) -> None:
        """By its input's end, or by force."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ends = time.monotonic() + limit_s
        while b"\n" not in self.left:
            ready, _, _ = select.select([self.process.stdout], [], [], max(ends - time.monotonic(), 0))
            if not ready:
                self.process.kill()
                raise Failed(f"{self.name} took longer than {limit_s:.0f} s")
            chunk = os.read(self.process.stdout.fileno(), CHUNK)
            if not chunk:
                raise Failed(f"{self.name} has ended: {self._end()}")
            self.left += chunk
        line, self.left = self.left.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> str:
        return tail(self.log)[-500:].strip()
