"""The system of a benchmark as a child process: `house HOME ROLE...`, roles of `counterfoil up` by name."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from api.cli import prepare, roles
from infra.engines.supervisor import supervise
from infra.settings import Settings


def main(home: str, *names: str) -> None:
    settings = Settings(home=Path(home))
    wanted = [role for role in roles(settings) if role.name.partition("-")[0] in names]
    asyncio.run(supervise(settings, wanted, prepare, lambda _: print("up", flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
