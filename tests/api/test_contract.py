from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from api.app import create, create_commands, create_queries
from api.problems import MEDIA_TYPE, catalogue
from infra.settings import Settings
from tests.api.conftest import NO_POSTGRES, NOWHERE, Shop, paper

Document = dict[str, Any]


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), postgres_dsn=NO_POSTGRES, clickhouse=NOWHERE)


@pytest.fixture(scope="module")
def document(nothing: Settings) -> Document:
    return create(nothing).openapi()


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_document_is_valid_openapi_3_1(document: Document) -> None:
    assert document["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(document).validate()


def test_every_operation_has_examples_of_what_is_sent_and_what_is_answered(document: Document) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert any(
                key in part for key in ("example", "examples") for part in (parameter, parameter["schema"])
            ) or name.endswith("/problems/{name}"), (name, parameter["name"])
        if "requestBody" in operation:
            assert operation["requestBody"]["content"]["application/json"]["schema"]["examples"], name
        assert operation.get("description"), name
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                assert "example" in content or "examples" in content, (name, status)


def test_examples_have_the_form_they_are_examples_of(document: Document) -> None:
    def check(schema: Document, value: Any, where: object) -> None:
        whole = {**schema, "components": document["components"]}
        errors = list(jsonschema_rs.validator_for(whole).iter_errors(value))
        assert errors == [], where

    for name, operation in operations(document):
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            for example in schema["examples"]:
                check(schema, example, name)
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                if "schema" not in content:
                    continue
                shown = [each["value"] for each in content.get("examples", {}).values()]
                for example in [content["example"]] if "example" in content else shown:
                    check(content["schema"], example, (name, status))


def test_every_problem_an_operation_declares_is_in_the_catalogue(document: Document) -> None:
    declared = set()
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if int(status) < 400 or name == "GET /ready":
                continue
            assert set(answer["content"]) == {MEDIA_TYPE}, (name, status)
            for kind, example in answer["content"][MEDIA_TYPE]["examples"].items():
                assert str(example["value"]["status"]) == status
                declared.add(kind)
    at_the_edge_alone = {"route-unknown", "method-not-allowed", "body-unreadable", "internal"}
    of_no_route_yet = {"hold-alive", "nothing-returned", "offer-unknown"}
    assert catalogue().keys() - declared <= at_the_edge_alone | of_no_route_yet


def test_two_apps_share_the_paths_between_them(nothing: Settings, document: Document) -> None:
    commands, queries = create_commands(nothing).openapi(), create_queries(nothing).openapi()
    assert {name.split()[0] for name, _ in operations(commands) if "/api/" in name} == {"POST"}
    assert {name.split()[0] for name, _ in operations(queries) if "/api/" in name} == {"GET"}
    both = dict(operations(commands)) | dict(operations(queries))
    assert both.keys() == dict(operations(document)).keys()


@pytest.mark.slow
def test_whatever_the_document_allows_is_answered_as_it_says(
    http: TestClient, shop: Shop, nothing: Settings
) -> None:
    """schemathesis: requests made up from the document, valid and not, and every answer held against it."""
    assert shop.post("/offers", {"offer": "85123A", "title": "Mug"}).status_code == 201
    assert shop.post("/orders", paper()).status_code in (201, 404)
    checks = (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )
    document = schemathesis.openapi.from_dict(create(nothing).openapi())
    tried: list[str] = []
    for found in document.get_all_operations():
        operation = found.ok()  # type: ignore[union-attr]
        if operation.path.startswith("/api/"):
            _probe(operation, http, shop, tried, checks)
    assert len(set(tried)) >= 19


def _probe(operation: Any, http: TestClient, shop: Shop, tried: list[str], checks: Any) -> None:
    @settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def probe(case: Any) -> None:
        tried.append(operation.label)
        asked = case.as_transport_kwargs(base_url="http://testserver")
        asked["headers"] = {**asked["headers"], **shop.headers}
        asked.pop("cookies", None)
        if "data" in asked:
            asked["content"] = asked.pop("data")
        answer = http.request(**asked)
        assert answer.status_code != 500
        case.validate_response(answer, checks=checks)

    probe()
