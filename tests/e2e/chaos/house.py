"""A whole system as child processes, under the supervisor that `counterfoil up` uses."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from infra.engines.supervisor import Role, supervise
from infra.migrate import migrate
from infra.runtime import Runtime
from infra.settings import Settings


def migrate_both(settings: Settings) -> None:
    migrate(settings)
    Runtime(settings).clickhouse().define()


def main(home: str, *roles: str) -> None:
    asyncio.run(
        supervise(
            Settings(home=Path(home)),
            [
                Role(name, [sys.executable, "-m", *module.split()])
                for name, module in (r.split("=", 1) for r in roles)
            ],
            migrate_both,
            lambda addresses: print("up", addresses, flush=True),
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
