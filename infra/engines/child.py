"""One process that is kept running: spawned below a tether, watched, started again when it ends."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from infra.engines.server import Command, EngineFault, tail

PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 5.0
LONG_LIFE_S = 10.0  # who lived this long is started again without delay
LOG_BYTES_MAX = 20 << 20
READY_WITHIN_S = 60.0
DEATHS_BEFORE_READY_MAX = 5  # then it is broken, not unlucky
POLL_S = 0.05


@dataclass(eq=False)
class Child:
    """`ready` is asked from a thread until it says yes, in each life anew; None: to run is to answer."""

    name: str
    command: Command
    log: Path
    grace_s: float
    stop_signal: signal.Signals = signal.SIGTERM
    ready: Callable[[int], bool] | None = None
    changed: Callable[[], None] = lambda: None
    process: asyncio.subprocess.Process | None = None
    deaths: int = 0
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return self.process.pid if self.process and self.process.returncode is None else None

    async def keep(self) -> None:
        """One life after the other until cancelled; the pause between them doubles while lives are short."""
        pause_s = PAUSE_FIRST_S
        while True:
            born_s = time.monotonic()
            await self._live()
            self.deaths += 1
            if time.monotonic() - born_s > LONG_LIFE_S:
                pause_s = PAUSE_FIRST_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def first_answer(self) -> None:
        """Raises EngineFault with the end of the log when it keeps dying or never answers."""
        deadline_s = time.monotonic() + READY_WITHIN_S
        while not self.answering.is_set():
            broken = self.deaths >= DEATHS_BEFORE_READY_MAX
            if broken or time.monotonic() > deadline_s:
                what = "ended again and again" if broken else f"did not answer within {READY_WITHIN_S:.0f} s"
                raise EngineFault(f"{self.name} {what}; the end of {self.log}:\n{tail(self.log)}")
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """End the current life, by force after `grace_s`. Cancel `keep` first."""
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(self.stop_signal)
        try:
            async with asyncio.timeout(self.grace_s):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def _live(self) -> None:
        too_long = self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX
        with self.log.open("wb" if too_long else "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command.argv,
                env=self.command.environment,
                cwd=self.command.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only us, and we stop things in our order
            )
        self.changed()
        probe = asyncio.create_task(self._probe(self.process.pid))
        try:
            await self.process.wait()
        finally:
            probe.cancel()
            self.answering.clear()
        self.changed()

    async def _probe(self, pid: int) -> None:
        asked = self.ready
        while asked and not await asyncio.to_thread(asked, pid):  # noqa: ASYNC110 (it is another process)
            await asyncio.sleep(POLL_S)
        self.answering.set()
