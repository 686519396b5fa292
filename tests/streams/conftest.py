"""One line for all tests of this folder, emptied for each: a database costs a second, a TRUNCATE little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.analytics import ClickHouse
from infra.engines.clickhouse import EmbeddedClickHouse
from infra.settings import Settings
from tests.conftest import copied
from tests.streams.line import Line


@pytest.fixture(scope="session")
def whole_line(template: Settings) -> Iterator[Line]:
    with copied(template) as settings:
        line = Line(settings)
        yield line
        line.close()


@pytest.fixture
def line(whole_line: Line) -> Line:
    whole_line.clickhouse = None
    whole_line.empty()
    return whole_line


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    server = EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def both(whole_line: Line, engine: EmbeddedClickHouse) -> Iterator[Line]:
    """A line that ends in ClickHouse too."""
    whole_line.clickhouse = ClickHouse(engine.url, whole_line.schema)
    whole_line.empty()
    yield whole_line
    whole_line.clickhouse.close()
    whole_line.clickhouse = None
