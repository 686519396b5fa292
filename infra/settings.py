"""Everything that differs between two installations, read from COUNTERFOIL_* variables and `.env`."""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "COUNTERFOIL_"
SECRET_CHARS_MIN = 32  # 16 bytes in hex, the least that cannot be guessed
LIMIT_MAX = 1_000_000_000
"""Requests a minute: more than any machine answers."""
SECRET_KINDS_MIN = 8
"""Different characters: hex from chance has fewer once in a hundred million times."""
Role = Literal["owner", "app", "worker"]


class BadSetting(ValueError):
    """A variable with a value that cannot be used: one line each, naming it and saying what to do."""


def _absolute(path: Path) -> Path:
    """Children may stand in another directory than the one the path was written for."""
    return path.expanduser().absolute()


def postgres_url(text: str) -> str:
    if urlsplit(text).scheme not in {"postgresql", "postgres"} or not urlsplit(text).path.strip("/"):
        raise ValueError("write it as postgresql://user:password@host:5432/database")
    return text


def _clickhouse_url(text: str) -> str:
    if urlsplit(text).scheme not in {"http", "https"} or not urlsplit(text).hostname:
        raise ValueError("write it as http://user:password@host:8123/database")
    return text


def _redis_url(text: str) -> str:
    if urlsplit(text).scheme not in {"redis", "rediss"} or not urlsplit(text).hostname:
        raise ValueError("write it as redis://:password@host:6379/0")
    return text


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or text != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError(f"{text!r}: name each origin as https://shop.example, without a path; none is a *")
    return text


def _listed(given: Any) -> Any:
    return [each.strip() for each in given.split(",") if each.strip()] if isinstance(given, str) else given


def _brokers(text: str) -> str:
    for broker in text.split(","):
        host, _, port = broker.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("write it as host:9092, several separated by commas")
    return text


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < SECRET_CHARS_MIN:
        raise ValueError(
            f"give at least {SECRET_CHARS_MIN} characters, for instance from `openssl rand -hex 32`, "
            "or leave it out and one is made and kept in the home directory"
        )
    return secret


def _per_minute(requests: int) -> int:
    if not 0 <= requests <= LIMIT_MAX:
        raise ValueError(f"give requests a minute, {LIMIT_MAX} at most, or 0 for no limit")
    return requests


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a name come twice, and the last one win: a ledger's tenants would be somebody else's."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice; put what belongs to it together")
    return found


def _json(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given, object_pairs_hook=_unique)
    except json.JSONDecodeError as broken:
        raise ValueError(f"not JSON at character {broken.pos + 1}; write it as {LEDGERS_EXAMPLE}") from None


LEDGERS_EXAMPLE = '{"eu": {"tenants": ["acme", "bolt"]}}'
LEDGER_PATTERN = r"^[a-z0-9_]{1,40}$"
LedgerName = Annotated[str, StringConstraints(pattern=LEDGER_PATTERN)]
TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
PostgresUrl = Annotated[str, AfterValidator(postgres_url)]
ClickHouseUrl = Annotated[str, AfterValidator(_clickhouse_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
Brokers = Annotated[str, AfterValidator(_brokers)]
PerMinute = Annotated[int, AfterValidator(_per_minute)]
Origin = Annotated[str, AfterValidator(_origin)]
Secret = Annotated[SecretStr, AfterValidator(_long_enough)]


class LedgerSettings(BaseModel):
    """One further ledger: whose facts it holds, and its Postgres where that is not the installation's.

    With any address of its own it has none of the installation's.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tenants: frozenset[TenantName]
    postgres_dsn: PostgresUrl | None = Field(default=None, repr=False)
    postgres_owner_dsn: PostgresUrl | None = Field(default=None, repr=False)
    postgres_app_dsn: PostgresUrl | None = Field(default=None, repr=False)
    postgres_worker_dsn: PostgresUrl | None = Field(default=None, repr=False)

    @property
    def addresses(self) -> dict[str, str | None]:
        found = self.model_dump(exclude={"tenants"})
        return found if any(found.values()) else {}


class Settings(BaseSettings):
    """One installation. An engine without an address is an embedded one, which `counterfoil up` starts.

    Addresses carry passwords, so they stay out of `repr`. Raises BadSetting.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    home: Annotated[Path, AfterValidator(_absolute)] = Field(
        default=Path(".counterfoil"), validate_default=True
    )
    postgres_dsn: PostgresUrl | None = Field(default=None, repr=False)
    postgres_owner_dsn: PostgresUrl | None = Field(default=None, repr=False)
    postgres_app_dsn: PostgresUrl | None = Field(default=None, repr=False)
    postgres_worker_dsn: PostgresUrl | None = Field(default=None, repr=False)
    kafka: Brokers | None = None
    clickhouse: ClickHouseUrl | None = Field(default=None, repr=False)
    redis: RedisUrl | None = Field(default=None, repr=False)
    secret: Secret | None = None
    given_api_token: Secret | None = Field(default=None, validation_alias="COUNTERFOIL_API_TOKEN")
    given_sealing_key: Secret | None = Field(default=None, validation_alias="COUNTERFOIL_SEALING_KEY")
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=0, ge=0, le=65535)
    trusted_proxies: int = Field(default=0, ge=0, le=8)
    limit_commands: PerMinute = 60_000
    limit_queries: PerMinute = 60_000
    limit_strangers: PerMinute = 60
    workers: int = Field(default=1, ge=1, le=64)
    production: bool = False
    """Makes no secret by itself, and shows its documents to whoever has the token only."""
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_listed)] = ()
    log_requests: bool = False
    ledger: LedgerName = "0"
    ledgers: Annotated[dict[LedgerName, LedgerSettings], NoDecode, BeforeValidator(_json)] = {}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            # Not chained: pydantic's own text says neither the variable's name nor what to do.
            raise BadSetting(
                "\n".join(_sentence(each["loc"], each["msg"]) for each in error.errors())
            ) from None

    @field_validator("ledgers")
    @classmethod
    def _each_tenant_once(
        cls, ledgers: dict[str, LedgerSettings], others: ValidationInfo
    ) -> dict[str, LedgerSettings]:
        if others.data.get("ledger") in ledgers:
            raise ValueError(
                f"{others.data['ledger']!r} is the default ledger, COUNTERFOIL_LEDGER, and has every tenant"
                " that no other one has; leave it out here"
            )
        homes: dict[str, str] = {}
        for name, ledger in ledgers.items():
            for tenant in sorted(ledger.tenants):
                if (home := homes.setdefault(tenant, name)) != name:
                    raise ValueError(
                        f"tenant {tenant!r} is in {home!r} and in {name!r}; leave it where its facts are"
                    )
        return ledgers

    # ── ledgers ───────────────────────────────────────────────────────────────────────────────────

    @property
    def ledger_names(self) -> tuple[str, ...]:
        """Of an installation: the default ledger, then the others."""
        return (self.ledger, *self.ledgers)

    def ledger_of(self, tenant: str) -> str:
        """Where an installation keeps this tenant's facts."""
        return next((name for name, each in self.ledgers.items() if tenant in each.tenants), self.ledger)

    def of_ledger(self, name: str) -> Self:
        """The installation as that ledger sees it: `ledger` and the Postgres addresses are its own."""
        if name == self.ledger:
            return self
        if name not in self.ledgers:
            known = ", ".join(self.ledger_names)
            raise BadSetting(f"COUNTERFOIL_LEDGERS: no ledger is named {name!r}; there are: {known}")
        return self.model_copy(update={"ledger": name, **self.ledgers[name].addresses})

    def holds(self, tenant: str) -> bool:
        """Whether `ledger` is where this tenant belongs. Those that begin with _ are each ledger's own."""
        homes = [name for name, each in self.ledgers.items() if tenant in each.tenants]
        return tenant.startswith("_") or (self.ledger in homes if homes else self.ledger not in self.ledgers)

    def role_dsn(self, role: Role) -> str:
        """A database role's URL: the one given for it, else `postgres_dsn` with its name and password."""
        given = {
            "owner": self.postgres_owner_dsn,
            "app": self.postgres_app_dsn,
            "worker": self.postgres_worker_dsn,
        }
        if explicit := given[role]:
            return explicit
        url = urlsplit(self.admin_dsn("set it, or run `counterfoil up`, which brings one"))
        host = url.netloc.rpartition("@")[2]
        return urlunsplit(url._replace(netloc=f"counterfoil_{role}:{self.role_password(role)}@{host}"))

    def admin_dsn(self, advice: str) -> str:
        """The administrative address. Raises BadSetting."""
        if self.postgres_dsn is None:
            within = f"COUNTERFOIL_LEDGERS: {self.ledger}.postgres_dsn"
            name = within if self.ledger in self.ledgers else "COUNTERFOIL_POSTGRES_DSN"
            raise BadSetting(f"{name} is not set: {advice}")
        return self.postgres_dsn

    def role_password(self, role: Role) -> str:
        return self._derived(f"postgres/{role}")

    def api_token(self) -> str:
        """The first administrator's bearer token."""
        if self.given_api_token is not None:
            return self._fit("API_TOKEN", self.given_api_token)
        return self._derived("api-token")

    def sealing_key(self) -> bytes:
        """64 bytes that seal the keys of personal data: a copy of the database alone opens nothing.

        Kept in a directory of its own, which a backup leaves out.
        """
        if self.given_sealing_key is not None or self.production:
            root = self._fit("SEALING_KEY", self.given_sealing_key)
        else:
            root = _kept(self.private_home() / "keys", "sealing.key")
        return hmac.digest(root.encode(), b"sealing", hashlib.sha512)

    def private_home(self) -> Path:
        """The home directory, made on first use with mode 0700."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.home

    def _fit(self, name: str, secret: SecretStr | None) -> str:
        """One that was given. Raises BadSetting where production would have to do without, or with a word."""
        given = secret.get_secret_value() if secret else ""
        if self.production and len(set(given)) < SECRET_KINDS_MIN:
            what = "too simple to keep anything" if given else "not set"
            raise BadSetting(
                f"{PREFIX}{name} is {what}: in production give it at least {SECRET_CHARS_MIN} characters of"
                " chance, for instance from `openssl rand -hex 32`, the same for every process"
            )
        return given

    def _derived(self, purpose: str) -> str:
        """A password in hex that follows from the secret, so that there is only one thing to keep."""
        if self.secret is not None or self.production:
            given = self._fit("SECRET", self.secret)
        else:
            given = _kept(self.private_home(), "secret")
        return hmac.digest(given.encode(), purpose.encode(), hashlib.sha256).hex()


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    field = str(location[0]).upper() if location else "SETTINGS"
    name = field if field.startswith(PREFIX) else f"{PREFIX}{field}"
    within = ".".join(str(step) for step in location[1:] if step != "[key]")
    where = f"{name}: {within}: " if within else f"{name}: "
    return f"{where}{message.removeprefix('Value error, ')} (see .env.example)"


def _kept(directory: Path, name: str) -> str:
    """The secret in that file (0600, directory 0700), 32 random bytes in hex, made by whoever comes first."""
    path = directory / name
    if not path.exists():
        directory.mkdir(exist_ok=True, mode=0o700)
        # Linked when complete: a second process never reads half of it, and never overwrites the first one's.
        with tempfile.NamedTemporaryFile("w", dir=directory) as draft:
            draft.write(secrets.token_hex(32))
            draft.flush()
            os.fsync(draft.fileno())
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft.name)
    return path.read_text().strip()
