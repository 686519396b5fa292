"""The servers, or a skip that says what to install."""

from __future__ import annotations

import csv
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import pytest

from infra.engines.clickhouse import EmbeddedClickHouse
from infra.engines.postgres import EmbeddedPostgres
from infra.settings import PREFIX
from tests.e2e.chaos.system import System, system
from tests.e2e.servers.debian import OLDEST, binaries, with_roles
from tests.e2e.servers.kafka import ApacheKafka, classpath, deployed

YEAR = Path(__file__).parents[2] / "data" / "retail_online_uci" / "online_retail_2010-12-01_2011-12-09.csv.xz"
SESSION = f"{PREFIX}KAFKA_SESSION_S"
SLICES = 5


@pytest.fixture(scope="session")
def jars(request: pytest.FixtureRequest) -> str:
    """Apache Kafka's class path."""
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None:
            pytest.skip(f"no `{program}` on PATH: apt-get install {package}")
    assert request.config.cache is not None
    return classpath(request.config.cache.mkdir("apache-kafka"))


@pytest.fixture(scope="module")
def kafka(jars: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    server = ApacheKafka(tmp_path_factory.mktemp("kafka"), jars).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def bindir() -> Path:
    found = binaries()
    if found is None:
        pytest.skip(f"no PostgreSQL {OLDEST} or later below /usr/lib/postgresql: apt-get install postgresql")
    return found


@pytest.fixture(scope="module")
def debian(bindir: Path) -> Iterator[EmbeddedPostgres]:
    # Up to version 15 its programs go to where they were installed and back again: run as root they drop to
    # `nobody`, who must then be able to enter every directory above, and pytest's own are closed.
    with tempfile.TemporaryDirectory(prefix="counterfoil-debian-") as directory:
        Path(directory).chmod(0o711)
        server = EmbeddedPostgres(Path(directory), bindir=bindir).start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def made(
    kafka: ApacheKafka, debian: EmbeddedPostgres, bindir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """The whole system on these servers. ClickHouse is the embedded one: no package has a recent server."""
    clickhouse = EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse")).start()
    addresses = with_roles(debian, bindir) | {
        f"{PREFIX}KAFKA": kafka.address,
        f"{PREFIX}CLICKHOUSE": clickhouse.url,
        SESSION: deployed("worker")[SESSION],
    }
    with (
        told(addresses),
        system(
            tmp_path_factory.mktemp("home"),
            api="api.cli api",
            relay="streams.relay",
            worker_1="streams.app",
            worker_2="streams.app",
            deadlines="streams.deadlines",
        ) as made,
    ):
        yield made
    clickhouse.stop()


@contextmanager
def told(variables: dict[str, str]) -> Iterator[None]:
    """Variables for every process that is started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """December 2010 in files of whole invoices, each with its share; the last file has them all."""
    directory = tmp_path_factory.mktemp("december")
    paths = [directory / f"slice-{nth}.csv" for nth in range(SLICES)] + [directory / "december.csv"]
    files = [path.open("w", newline="") for path in paths]
    with lzma.open(YEAR, "rt", newline="") as packed:
        rows = csv.reader(packed)
        header = next(rows)
        number, placed_at = header.index("InvoiceNo"), header.index("InvoiceDate")
        writers = [csv.writer(file) for file in files]
        for writer in writers:
            writer.writerow(header)
        for row in rows:
            if row[placed_at] >= "2011":
                break
            writers[crc32(row[number].encode()) % SLICES].writerow(row)
            writers[SLICES].writerow(row)
    for file in files:
        file.close()
    return paths
