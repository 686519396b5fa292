"""Apache Kafka itself: one KRaft node on loopback, set up as infra/deploy/compose.yaml sets it up."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self
from uuid import uuid4

import yaml

from infra.engines.broker import EmbeddedBroker
from infra.engines.server import LOOPBACK, Command, EngineFault, free_port

POM = Path(__file__).with_name("pom.xml")
COMPOSE = Path(__file__).parents[3] / "infra" / "deploy" / "compose.yaml"
DOWNLOAD_S_MAX = 240
FORMAT_S_MAX = 60
START_S_MAX = 120.0
SOON = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}
"""After `kill -9` a node waits for the end of its own last session: as deployed 9 s, each time."""
JAVA = ("java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""A small heap, and a compiler that starts fast rather than ends fast: the node lives for minutes."""
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"


def classpath(cache: Path) -> str:
    """Kafka's server jars, fetched by Maven into its own repository (about 60 MB) unless they are there.

    `cache` remembers what Maven answered for this pom, because asking costs some seconds.
    """
    answer = cache / hashlib.sha256(POM.read_bytes()).hexdigest()[:16]
    if answer.exists() and all(Path(jar).exists() for jar in answer.read_text().split(os.pathsep)):
        return answer.read_text()
    goal = ("dependency:build-classpath", f"-Dmdep.outputFile={answer}")
    done = subprocess.run(
        ["mvn", "--quiet", "--batch-mode", f"--file={POM}", *goal],
        check=False,
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_S_MAX,
    )
    if done.returncode != 0:
        raise EngineFault(f"Maven could not fetch Apache Kafka:\n{done.stdout[-2_000:]}")
    return answer.read_text()


def deployed(service: str) -> dict[str, str]:
    """What compose.yaml gives a service in its environment."""
    environment = yaml.safe_load(COMPOSE.read_text())["services"][service]["environment"]
    return {name: str(value) for name, value in environment.items()}


def as_deployed() -> dict[str, str]:
    """The node's properties in compose.yaml, in Kafka's own spelling."""
    return {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): value
        for name, value in deployed("kafka").items()
        if name.startswith("KAFKA_")
    }


def version() -> str:
    """Of the image that compose.yaml deploys."""
    image: str = yaml.safe_load(COMPOSE.read_text())["services"]["kafka"]["image"]
    return image.partition(":")[2]


class ApacheKafka(EmbeddedBroker):
    """One node, broker and controller; what it was given survives `kill -9` of it, and `wipe` ends it."""

    name = "kafka"
    stop_signal = signal.SIGTERM
    grace_s = 20.0

    def __init__(self, directory: Path, jars: str, port: int = 0) -> None:
        super().__init__(directory, port)
        self._jars = jars
        self._data = self.directory / "data"
        self._properties = self.directory / "server.properties"
        self._controller = f"{LOOPBACK}:{free_port()}"

    def prepare(self) -> None:
        """Write its properties, and format its storage on first use."""
        super(EmbeddedBroker, self).prepare()
        properties = (
            as_deployed()
            | SOON
            | {
                "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{self._controller}",
                "advertised.listeners": f"PLAINTEXT://{self.address}",
                "controller.quorum.voters": f"1@{self._controller}",
                "log.dirs": str(self._data),
            }
        )
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        if not self._data.exists():
            self._format()

    def start(self, timeout_s: float = START_S_MAX) -> Self:
        """As every server; a JVM needs its time on a busy machine."""
        return super().start(timeout_s)

    def command(self) -> Command:
        return Command(
            self._tethered([*self._java("kafka.Kafka"), str(self._properties)]),
            {"PATH": os.environ["PATH"]},
            self.directory,
        )

    def wipe(self) -> None:
        """Forget everything: what starts next is another cluster at the same address."""
        self.stop()
        shutil.rmtree(self._data)

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
        subprocess.run(
            [*self._java("kafka.tools.StorageTool"), "format", "-t", cluster, "-c", str(self._properties)],
            check=True,
            capture_output=True,
            timeout=FORMAT_S_MAX,
        )

    def _java(self, main: str) -> list[str]:
        return [*JAVA, QUIET, "-cp", self._jars, main]
