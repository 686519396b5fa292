"""The deployment files say what they promise; with the compose plugin at hand, it reads them too."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "infra" / "deploy"
ENGINES = {"postgres", "kafka", "clickhouse"}
ROLES = {"api", "relay", "worker", "deadlines", "migrate"}
PINNED = re.compile(r"^[a-z/-]+:\d+(\.\d+)+[a-z.-]*$")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


def test_every_engine_and_every_role_is_there_and_no_other(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == ENGINES | ROLES
    assert {role: services[role]["command"] for role in ROLES} == {role: [role] for role in ROLES}


def test_every_image_is_pinned(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert PINNED.match(service["image"]), service["image"]
    bases = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert bases
    assert all(PINNED.match(base) for base in bases), bases


def test_roles_run_without_root_without_privileges_and_on_a_read_only_disk(
    services: dict[str, dict[str, Any]],
) -> None:
    for role in ROLES:
        service = services[role]
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    users = re.findall(r"^USER (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert users == ["10001:10001"]


def test_only_the_api_is_published_and_only_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "ports" in service} == {"api"}
    assert all(port.startswith("127.0.0.1:") for port in services["api"]["ports"])


def test_engines_and_the_api_say_whether_they_are_well(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "healthcheck" in service} == ENGINES | {"api"}


def test_roles_start_when_the_migration_is_done(services: dict[str, dict[str, Any]]) -> None:
    for role in ROLES - {"migrate"}:
        assert services[role]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert services["migrate"]["restart"] == "no"


def test_only_the_migration_sees_the_owner_of_the_database(services: dict[str, dict[str, Any]]) -> None:
    for role in ROLES - {"migrate"}:
        given = services[role]["environment"]
        assert "COUNTERFOIL_POSTGRES_DSN" not in given, role
        assert "COUNTERFOIL_POSTGRES_OWNER_DSN" not in given, role
        assert not any("OWNER_PASSWORD" in str(value) for value in given.values()), role


def test_only_roles_that_run_commands_can_open_sealed_fields(services: dict[str, dict[str, Any]]) -> None:
    # PyYAML has already merged the anchors, as compose does.
    holders = {role for role in ROLES if "COUNTERFOIL_SEALING_KEY" in services[role]["environment"]}
    assert holders == {"api", "worker", "deadlines"}


def test_every_secret_is_asked_for_and_none_is_written_down() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    optional = set(re.findall(r"\$\{(\w+):-", text))
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    assert set(example) == asked | optional
    assert {name for name in asked if example[name]} == set()
    for name, value in re.findall(r"(\w*(?:PASSWORD|SECRET|KEY|TOKEN)\w*): (\S+)", text):
        assert value.startswith("${"), name


def test_the_image_holds_the_six_rooms_and_nothing_of_tests_or_data() -> None:
    copied = set(re.findall(r"^COPY (\w+) \1$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert copied == {"domain", "commands", "projections", "streams", "api", "infra"}
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in allowed
    assert {line[1:] for line in allowed if line.startswith("!")} >= copied


def test_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose here: only the assertions above were checked")
    done = subprocess.run(
        [docker, "compose", "-f", DEPLOY / "compose.yaml", "--env-file", "/dev/stdin", "config", "-q"],
        input=re.sub(r"=$", "=" + "0" * 64, (DEPLOY / "env.example").read_text(), flags=re.MULTILINE),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
