"""Settings: what is given wins, what is missing is made once, and nothing secret is ever shown."""

import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.settings import PREFIX, BadSetting, Settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"
DSN = "postgresql://postgres:hunter2-password@db.internal:5432/counterfoil"
SECRET = "s" * 32


@pytest.fixture(autouse=True)
def _no_variables_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_any_variable_everything_is_embedded_and_local(tmp_path: Path) -> None:
    settings = Settings()
    assert settings.home == tmp_path / ".counterfoil"
    assert (settings.postgres_dsn, settings.kafka, settings.clickhouse, settings.redis) == (None,) * 4
    assert (settings.api_host, settings.workers, settings.ledger) == ("127.0.0.1", 1, "0")


def test_an_environment_variable_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("COUNTERFOIL_WORKERS=2\nCOUNTERFOIL_API_PORT=8765\n")
    monkeypatch.setenv("COUNTERFOIL_WORKERS", "3")
    assert (Settings().workers, Settings().api_port) == (3, 8765)


def test_the_example_file_lists_every_variable_once_with_a_comment_and_is_valid() -> None:
    lines = EXAMPLE.read_text().splitlines()
    listed = [line.split("=")[0] for line in lines if line.startswith(PREFIX)]
    known = {
        field.validation_alias if isinstance(field.validation_alias, str) else f"{PREFIX}{name.upper()}"
        for name, field in Settings.model_fields.items()
    }
    assert sorted(listed) == sorted(known)
    paragraphs = EXAMPLE.read_text().split("\n\n")
    assert all(part.startswith("#") for part in paragraphs), "a paragraph without a comment"
    Path(".env").write_text(EXAMPLE.read_text())
    assert Settings().postgres_dsn is None


def test_the_secret_is_made_once_private_and_the_same_for_every_process_that_comes_at_once(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: Settings(home=home).api_token(), range(32)))
    assert len(tokens) == 1
    assert re.fullmatch(r"[0-9a-f]{64}", (home / "secret").read_text())
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home, home / "secret")] == [0o700, 0o600]
    assert sorted(path.name for path in home.iterdir()) == ["secret"]


def test_roles_reach_the_same_server_under_names_and_passwords_of_their_own(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, postgres_dsn=DSN)
    urls = [urlsplit(settings.role_dsn(role)) for role in ("owner", "app", "worker")]
    assert [url.username for url in urls] == ["counterfoil_owner", "counterfoil_app", "counterfoil_worker"]
    assert {(url.hostname, url.port, url.path) for url in urls} == {("db.internal", 5432, "/counterfoil")}
    assert len({url.password for url in urls}) == 3
    assert (
        urls[0].password == settings.role_password("owner") == Settings(home=tmp_path).role_password("owner")
    )


def test_a_role_with_an_address_of_its_own_uses_it_unchanged(tmp_path: Path) -> None:
    own = "postgresql://auditor:x@replica:5432/counterfoil"
    settings = Settings(home=tmp_path, postgres_dsn=DSN, postgres_app_dsn=own)
    assert settings.role_dsn("app") == own
    assert "replica" not in settings.role_dsn("worker")


def test_a_role_without_any_database_says_which_variable_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="COUNTERFOIL_POSTGRES_DSN is not set"):
        Settings(home=tmp_path).role_dsn("app")


def test_the_sealing_key_is_64_bytes_from_a_file_apart_and_does_not_follow_from_the_secret(
    tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path, secret=SECRET)
    first = settings.sealing_key()
    assert len(first) == 64
    assert settings.sealing_key() == first
    assert stat.S_IMODE((tmp_path / "keys" / "sealing.key").stat().st_mode) == 0o600
    (tmp_path / "keys" / "sealing.key").unlink()
    assert settings.sealing_key() != first


def test_a_given_token_and_a_given_sealing_key_leave_no_files_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERFOIL_API_TOKEN", "t" * 40)
    monkeypatch.setenv("COUNTERFOIL_SEALING_KEY", "k" * 40)
    settings = Settings(home=tmp_path / "home")
    assert settings.api_token() == "t" * 40
    assert len(settings.sealing_key()) == 64
    assert not (tmp_path / "home").exists()


def test_no_password_shows_in_the_representation() -> None:
    settings = Settings(
        postgres_dsn=DSN,
        postgres_app_dsn=DSN,
        clickhouse="http://default:hunter2@ch:8123/default",
        redis="redis://:hunter2@redis:6379/0",
        ledgers={"eu": {"tenants": [], "postgres_dsn": DSN, "postgres_worker_dsn": DSN}},
        secret="hunter2" * 5,
        given_api_token="hunter2" * 5,
        given_sealing_key="hunter2" * 5,
    )
    assert "hunter2" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        (
            "COUNTERFOIL_POSTGRES_DSN",
            "host=db dbname=hunter2",
            "postgresql://user:password@host:5432/database",
        ),
        (
            "COUNTERFOIL_POSTGRES_DSN",
            "postgresql://hunter2@db",
            "postgresql://user:password@host:5432/database",
        ),
        ("COUNTERFOIL_KAFKA", "http://kafka:9092", "host:9092"),
        ("COUNTERFOIL_KAFKA", "kafka", "host:9092"),
        ("COUNTERFOIL_CLICKHOUSE", "hunter2:8123", "http://user:password@host:8123/database"),
        ("COUNTERFOIL_REDIS", "localhost", "redis://:password@host:6379/0"),
        ("COUNTERFOIL_SECRET", "hunter2", "at least 32 characters"),
        ("COUNTERFOIL_API_TOKEN", "hunter2", "at least 32 characters"),
        ("COUNTERFOIL_WORKERS", "many", "valid integer"),
        ("COUNTERFOIL_WORKERS", "0", "greater than or equal to 1"),
        ("COUNTERFOIL_API_PORT", "70000", "less than or equal to 65535"),
        ("COUNTERFOIL_TRUSTED_PROXIES", "-1", "greater than or equal to 0"),
        ("COUNTERFOIL_LIMIT_COMMANDS", "plenty", "valid integer"),
        ("COUNTERFOIL_LIMIT_QUERIES", "-1", "0 for no limit"),
        ("COUNTERFOIL_LIMIT_STRANGERS", "2000000000", "0 for no limit"),
        ("COUNTERFOIL_LEDGER", 'x"; drop schema', "match pattern"),
        ("COUNTERFOIL_LEDGERS", "eu=hunter2", 'write it as {"eu": {"tenants": ["acme", "bolt"]}}'),
        ("COUNTERFOIL_LEDGERS", '{"E U": {"tenants": []}}', "E U: String should match pattern"),
        ("COUNTERFOIL_LEDGERS", '{"eu": {"tenants": ["Acme"]}}', "eu.tenants.0: String should match pattern"),
        ("COUNTERFOIL_LEDGERS", '{"eu": {"tenant": ["acme"]}}', "eu.tenants: Field required"),
        (
            "COUNTERFOIL_LEDGERS",
            '{"eu": {"tenants": ["acme"], "postgres_dsn": "hunter2"}}',
            "eu.postgres_dsn: write it as postgresql://",
        ),
        (
            "COUNTERFOIL_LEDGERS",
            '{"eu": {"tenants": ["acme"]}, "us": {"tenants": ["bolt", "acme"]}}',
            "tenant 'acme' is in 'eu' and in 'us'; leave it where its facts are",
        ),
        (
            "COUNTERFOIL_LEDGERS",
            '{"eu": {"tenants": ["acme"]}, "eu": {"tenants": ["bolt"]}}',
            "a name is there twice",
        ),
        ("COUNTERFOIL_LEDGERS", '{"0": {"tenants": ["acme"]}}', "'0' is the default ledger"),
    ],
)
def test_a_bad_value_is_refused_by_its_name_with_advice_and_is_not_repeated(
    name: str, value: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting) as refused:
        Settings()
    assert str(refused.value).startswith(f"{name}: ")
    assert advice in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_two_bad_values_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERFOIL_WORKERS", "many")
    monkeypatch.setenv("COUNTERFOIL_KAFKA", "kafka")
    with pytest.raises(BadSetting, match=r"(?s)COUNTERFOIL_KAFKA.*COUNTERFOIL_WORKERS"):
        Settings()


# ── ledgers ───────────────────────────────────────────────────────────────────────────────────────


def test_a_tenant_belongs_to_the_ledger_that_names_it_and_everybody_else_to_the_default_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(
        "COUNTERFOIL_LEDGERS", '{"eu": {"tenants": ["acme", "bolt"]}, "us": {"tenants": ["cole"]}}'
    )
    settings = Settings()
    assert settings.ledger_names == ("0", "eu", "us")
    assert [settings.ledger_of(tenant) for tenant in ("acme", "bolt", "cole", "anybody")] == [
        "eu",
        "eu",
        "us",
        "0",
    ]
    held = {
        name: [t for t in ("acme", "cole", "anybody") if settings.of_ledger(name).holds(t)]
        for name in ["0", "eu", "us"]
    }
    assert held == {"0": ["anybody"], "eu": ["acme"], "us": ["cole"]}
    assert all(settings.of_ledger(name).holds("_ledger") for name in settings.ledger_names), (
        "each has its own"
    )


def test_a_ledger_has_the_installations_postgres_or_none_of_its_addresses(tmp_path: Path) -> None:
    other = "postgresql://postgres:x@other:5432/counterfoil"
    settings = Settings(
        home=tmp_path,
        postgres_dsn=DSN,
        postgres_app_dsn="postgresql://auditor:x@replica:5432/counterfoil",
        ledgers={"eu": {"tenants": []}, "us": {"tenants": [], "postgres_dsn": other}},
    )
    hosts = {
        name: [urlsplit(settings.of_ledger(name).role_dsn(role)).hostname for role in ("owner", "app")]
        for name in settings.ledger_names
    }
    assert hosts == {
        "0": ["db.internal", "replica"],
        "eu": ["db.internal", "replica"],
        "us": ["other", "other"],
    }


def test_a_ledger_that_nobody_named_is_refused_with_those_that_are(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, ledgers={"eu": {"tenants": []}})
    with pytest.raises(BadSetting, match=r"no ledger is named 'uk'; there are: 0, eu"):
        settings.of_ledger("uk")


def test_a_ledger_without_an_administrators_address_says_which_one_is_missing(tmp_path: Path) -> None:
    app = "postgresql://auditor:x@other:5432/counterfoil"
    settings = Settings(
        home=tmp_path, postgres_dsn=DSN, ledgers={"eu": {"tenants": [], "postgres_app_dsn": app}}
    )
    assert settings.of_ledger("eu").role_dsn("app") == app
    with pytest.raises(BadSetting, match=r"COUNTERFOIL_LEDGERS: eu\.postgres_dsn is not set"):
        settings.of_ledger("eu").role_dsn("worker")
