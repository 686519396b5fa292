"""ClickHouse in a library (chDB) behind ClickHouse's HTTP protocol, so that the stock client need not know.

Scaffolding for tests and single machines: buffered answers, no sessions, one user. Protocol:
https://clickhouse.com/docs/interfaces/http.
"""

import argparse
import base64
import hmac
import http.client
import json
import os
import queue
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lz4.frame
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from infra.engines.server import LOOPBACK, Command, EngineFault, Server, kept_password

USER = "default"
PASSWORD_VARIABLE = "CLICKHOUSE_PASSWORD"
PROBE_TIMEOUT_S = 1.0
CONNECTIONS = 4  # queries that run at once; a fifth waits
# For a small box: limits of the whole engine (start-up arguments) and of one query (settings).
ENGINE_LIMITS = {
    "max_server_memory_usage": 1 << 30,
    "mark_cache_size": 16 << 20,
    "primary_index_cache_size": 16 << 20,
    "index_mark_cache_size": 8 << 20,
    "uncompressed_cache_size": 0,
    "query_condition_cache_size": 8 << 20,
    "compiled_expression_cache_size": 8 << 20,
    "max_thread_pool_size": 64,
}
QUERY_LIMITS = {"max_threads": 2, "max_memory_usage": 512 << 20, "max_result_bytes": 128 << 20}
# Parameters of a request that are not settings of its query.
TRANSPORT = {
    *("query", "query_id", "database", "default_format", "role", "quota_key", "user", "password"),
    *("session_id", "session_timeout", "session_check", "client_protocol_version"),
    *("compress", "decompress", "enable_http_compression", "http_zlib_compression_level"),
    *("wait_end_of_query", "buffer_size"),
    *("send_progress_in_http_headers", "http_headers_progress_interval_ms"),
}
# Data follows the first line break after the format's name, and may itself begin with a line break.
INSERT = re.compile(
    rb"\s*INSERT\s+INTO\s+([^\s(]+\s*(?:\([^)]*\))?)\s*FORMAT\s+(\w+)[ \t;]*\r?\n", re.IGNORECASE
)
FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
CODE = re.compile(r"Code: (\d+)")
CODE_UNKNOWN = 1000  # POCO_EXCEPTION
CODE_AUTHENTICATION_FAILED = 516


class EmbeddedClickHouse(Server):
    """One engine over one directory. Two processes on one directory are kept apart by a lock."""

    name = "clickhouse"
    grace_s = 3.0

    @property
    def url(self) -> str:
        """As COUNTERFOIL_CLICKHOUSE and `clickhouse_connect.get_client(dsn=...)` take it."""
        return f"http://{USER}:{self._password}@{LOOPBACK}:{self.port}/default"

    def command(self) -> Command:
        where = ["--path", str(self.directory / "data"), "--port", str(self.port)]
        argv = [sys.executable, "-m", "infra.engines.clickhouse", *where]
        # The server stands in its own directory and still has to find this package.
        search = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {PASSWORD_VARIABLE: self._password, "PYTHONPATH": os.pathsep.join(search)}
        return Command(
            self._tethered(argv, lock=self.directory / "lock"), os.environ | variables, self.directory
        )

    def setting(self) -> dict[str, str]:
        return {"clickhouse": self.url}

    def answers(self, pid: int) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def _password(self) -> str:
        return kept_password(self.directory / "password")


@dataclass(frozen=True)
class Answer:
    """One result, whole, in the format that the query or the request asked for."""

    body: bytes
    format: str
    summary: dict[str, str]


class Session:
    """A connection of the library, with the database and the settings it has at the moment."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._database = "default"
        self._settings: dict[str, str] = {}
        for name, value in QUERY_LIMITS.items():
            connection.query(f"SET {name} = {value}")

    def prepare(self, database: str, settings: Mapping[str, str]) -> None:
        """Become what one request asks for; costs nothing when the request before asked for the same."""
        if database != self._database:
            self.connection.query(f"USE `{database.replace('`', '')}`")
            self._database = database
        for name in self._settings.keys() - settings.keys():
            self.connection.query(f"SET {name} = {QUERY_LIMITS.get(name, 'DEFAULT')}")
            del self._settings[name]
        for name, value in settings.items():
            if self._settings.get(name) != value:
                self.connection.query(f"SET {_identifier(name)} = '{_quoted(value)}'")
                self._settings[name] = value


class Engine:
    """The library, opened once for `path`; each of its connections runs one query at a time."""

    def __init__(self, path: Path) -> None:
        try:
            import chdb  # here, because it costs 150 MB that only the server process should pay
        except ImportError as error:
            raise EngineFault(
                "no embedded ClickHouse found; run `pip install chdb-core-lite`, "
                "or set COUNTERFOIL_CLICKHOUSE to use a server of your own"
            ) from error
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open = chdb.connect
        limits = "&".join(f"{name}={value}" for name, value in ENGINE_LIMITS.items())
        self._address = f"file:{path}?{limits}"
        self._idle: queue.LifoQueue[Session] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put(Session(self._open(self._address)))
        self._inbox = path.parent / "inbox"
        shutil.rmtree(self._inbox, ignore_errors=True)  # what an engine that was killed left behind
        self._inbox.mkdir(mode=0o700)

    def run(self, query: bytes, parameters: Mapping[str, str]) -> Answer:
        """Raises RuntimeError with ClickHouse's own message, which begins with its error code."""
        settings = {
            name: value
            for name, value in parameters.items()
            if name not in TRANSPORT and not name.startswith("param_")
        }
        bound = {name[6:]: value for name, value in parameters.items() if name.startswith("param_")}
        session = self._idle.get()
        try:
            session.prepare(parameters.get("database") or "default", settings)
            insert = INSERT.match(query)
            if insert and insert.end() < len(query):
                return self._insert(session.connection, insert, query)
            named = FORMAT.search(query)
            name = named.group(1).decode() if named else parameters.get("default_format", "TabSeparated")
            result = session.connection.query(query, name, params=bound)
            read = {"read_rows": str(result.rows_read()), "read_bytes": str(result.bytes_read())}
            return Answer(result.bytes() or b"", name, read)
        except RuntimeError:
            # A connection that failed in the middle of a result would give the rest to the next query.
            broken, session = session, Session(self._open(self._address))
            broken.connection.close()
            raise
        finally:
            self._idle.put(session)

    def _insert(self, connection: Any, insert: re.Match[bytes], query: bytes) -> Answer:
        """Through a file: the library takes data of a binary format in no other way."""
        target, name = insert.group(1), insert.group(2)
        with tempfile.NamedTemporaryFile(dir=self._inbox) as file:
            file.write(memoryview(query)[insert.end() :])
            file.flush()
            source = f" FROM INFILE '{file.name}' COMPRESSION 'none' FORMAT ".encode()
            result = connection.query(b"INSERT INTO " + target + source + name, "TabSeparated")
        written = {"written_rows": str(result.rows_read()), "written_bytes": str(result.bytes_read())}
        return Answer(b"", "TabSeparated", written)


def application(engine: Engine, password: str) -> Starlette:
    async def ping(request: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    async def serve(request: Request) -> Response:
        if not _authentic(request, password):
            return _failure(f"Code: {CODE_AUTHENTICATION_FAILED}. DB::Exception: Authentication failed", 403)
        try:
            body = _decompressed(await request.body(), request.headers.get("content-encoding"))
            parameters = dict(request.query_params)
            head = parameters.get("query", "").encode()
            query = head + b"\n" + body if head and body else head or body
            answer = await run_in_threadpool(engine.run, query, parameters)
        except (RuntimeError, ValueError) as error:
            return _failure(str(error), 500)
        headers = {
            "X-ClickHouse-Format": answer.format,
            "X-ClickHouse-Summary": json.dumps(answer.summary),
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Server-Display-Name": "chdb",
        }
        return Response(answer.body, headers=headers, media_type="application/octet-stream")

    return Starlette(routes=[Route("/ping", ping), Route("/", serve, methods=["GET", "POST"])])


def _authentic(request: Request, password: str) -> bool:
    key = request.headers.get("x-clickhouse-key", "")
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        key = base64.b64decode(credentials + "==").decode(errors="replace").partition(":")[2]
    return hmac.compare_digest(key.encode(), password.encode())


def _decompressed(body: bytes, encoding: str | None) -> bytes:
    if not encoding or encoding == "identity":
        return body
    if encoding == "lz4":
        return b"".join(_frames(body))
    if encoding in {"gzip", "deflate"}:
        return zlib.decompress(body, wbits=47)  # 32 + 15: either header, largest window
    raise ValueError(f"Code: 89. DB::Exception: unknown content encoding {encoding}; use lz4 or gzip")


def _frames(body: bytes) -> Iterator[bytes]:
    """The client makes a frame of each block of rows, and `lz4.frame.decompress` stops after the first."""
    while body:
        frame = lz4.frame.LZ4FrameDecompressor()
        yield frame.decompress(body)
        if not frame.eof:
            raise ValueError("Code: 271. DB::Exception: the lz4 body is cut short")
        body = frame.unused_data or b""


def _failure(message: str, status: int) -> Response:
    text = message[max(message.find("Code: "), 0) :]
    code = CODE.match(text)
    headers = {"X-ClickHouse-Exception-Code": code.group(1) if code else str(CODE_UNKNOWN)}
    return PlainTextResponse(text, status, headers=headers)


def _identifier(name: str) -> str:
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"Code: 115. DB::Exception: {name!r} is no name of a setting")
    return name


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a chDB directory over ClickHouse's HTTP protocol.")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    uvicorn.run(
        application(Engine(given.path), os.environ[PASSWORD_VARIABLE]),
        host=LOOPBACK,
        port=given.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=120,  # longer than a client's pool keeps one, so that only clients close
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
