"""A stream at a position is what the rules of that moment saw."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from infra.audit.rebuild import TENANT, rebuild
from infra.audit.state import StreamUnknown, state
from tests.infra.audit.shop import Shop


def told(shop: Shop, stream: str, at: int | None = None, tenant: str = "acme") -> dict[str, Any]:
    found = asyncio.run(state(shop.runtime, stream, tenant=tenant, at=at))
    answer: dict[str, Any] = json.loads(json.dumps(found.as_json()))
    return answer


def test_a_pool_is_told_as_it_was_at_each_position(shop: Shop) -> None:
    now = told(shop, "pool-hall")
    assert [fact["name"].partition(".")[2] for fact in now["facts"]] == [
        *("pool-opened", "places-held", "places-held", "places-held", "hold-released"),
    ]
    assert len(now["states"]["Pool"]["holds"]) == 2
    first, second = (fact["position"] for fact in now["facts"][:2])
    assert told(shop, "pool-hall", first)["states"]["Pool"] == {
        "open": True, "capacity": 10, "used": 0, "holds": {}, "dead": [],
    }  # fmt: skip
    then = told(shop, "pool-hall", second)
    assert (then["version"], then["position"], then["at"]) == (2, second, second)
    assert len(then["states"]["Pool"]["holds"]) == 1


def test_facts_say_who_asked_when_and_under_which_key(shop: Shop) -> None:
    (fact,) = told(shop, f"order-{shop.order('new')}")["facts"]
    assert (fact["version"], fact["actor"], fact["key"]) == (1, "ana", "order-new")
    assert fact["at"].endswith("Z")
    assert fact["data"]["document"]["number"] == "new"


def test_sealed_fields_stay_sealed(shop: Shop) -> None:
    (fact,) = told(shop, f"order-{shop.order('sealed')}")["facts"]
    assert fact["data"]["contact"] == {"subject": "person-1", "box": "c2VhbGVk"}


def test_a_stream_without_rules_has_facts_and_no_states(shop: Shop) -> None:
    asyncio.run(rebuild(shop.runtime, "catalog", reason="a test", grace_s=0))
    about = told(shop, "projection-catalog", tenant=TENANT)
    assert [fact["data"]["reason"] for fact in about["facts"]] == ["a test"]
    assert about["states"] == {}


def test_what_is_not_there_is_said(shop: Shop) -> None:
    with pytest.raises(StreamUnknown, match=r"has no stream 'pool-nowhere'$"):
        told(shop, "pool-nowhere")
    begins = told(shop, "pool-hall")["facts"][0]["position"]
    with pytest.raises(StreamUnknown, match=f"at position 1; it begins at position {begins}"):
        told(shop, "pool-hall", 1)
    with pytest.raises(StreamUnknown):
        told(shop, "pool-hall", tenant="other")
