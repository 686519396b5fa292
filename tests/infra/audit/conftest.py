"""One shop for all tests of this folder, traded once; each test gets a copy of its books to spoil."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from infra.analytics import ClickHouse
from infra.engines.clickhouse import EmbeddedClickHouse
from infra.settings import Settings
from tests.conftest import copied
from tests.infra.audit.shop import Shop, keep, put_back


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    server = EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def traded(template: Settings, engine: EmbeddedClickHouse) -> Iterator[Settings]:
    with copied(template) as settings:
        with_both = settings.model_copy(update={"clickhouse": engine.url})
        shop = Shop(with_both)
        shop.empty()
        shop.trade()
        asyncio.run(shop.catch_up())
        assert isinstance(shop.clickhouse, ClickHouse)
        keep(shop.clickhouse)
        shop.close()
        yield with_both


@pytest.fixture
def shop(traded: Settings) -> Iterator[Shop]:
    with copied(traded) as settings:
        shop = Shop(settings)
        assert isinstance(shop.clickhouse, ClickHouse)
        put_back(shop.clickhouse)
        yield shop
        shop.close()
