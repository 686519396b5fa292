"""How much memory a whole process tree really takes: shared pages counted once (PSS)."""

from __future__ import annotations

import threading
from pathlib import Path

KIB = 1024


def tree(root: int) -> set[int]:
    """The process and all of its descendants, as far as they live."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                stat = (process / "stat").read_bytes()
            except OSError:  # gone in the meantime
                continue
            parent = int(stat.rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found, waiting = set(), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, ())
    return found


def pss_bytes(pids: set[int]) -> int:
    """Proportional set size; 0 where the kernel does not tell."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * KIB for line in lines if line.startswith("Pss:"))
    return total


class Peak:
    """The most memory some process trees took together while this was open."""

    def __init__(self, roots: set[int], every_s: float = 2.0) -> None:
        self.roots, self.every_s = roots, every_s
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(self.every_s):
            self.look()

    def look(self) -> None:
        self.bytes = max(self.bytes, pss_bytes(set().union(*map(tree, self.roots))))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()
