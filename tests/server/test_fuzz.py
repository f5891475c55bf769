"""Requests made from the OpenAPI document: whatever comes, the server makes no mistake of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.serving import RunningServer, serving

pytestmark = pytest.mark.slow

OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("DELETE", "/v1/conversations/{name}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[RunningServer]:
    with serving(tiny, "--ctx", "128") as server:
        yield server


def test_all_operations_are_here(server: RunningServer) -> None:
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    found = {(o.ok().method.upper(), o.ok().path) for o in schema.get_all_operations()}
    assert found == set(OPERATIONS)


POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    "method, path, mode",
    [
        *((method, path, POSITIVE) for method, path in OPERATIONS),
        # Only what has a described body can be made wrong.
        *((method, path, NEGATIVE) for method, path in OPERATIONS[:3]),
    ],
)
def test_no_5xx(server: RunningServer, method: str, path: str, mode: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operation = schema[path][method]
    strategy = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=60,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=strategy)
    def call(case: schemathesis.Case) -> None:
        response = case.call(base_url=server.url, timeout=30)
        # A deadline of a millisecond is a fair wish, and 504 the fair answer.
        assert response.status_code < 500 or response.status_code == 504, response.text
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    call()
    health = server.health()
    assert health["status"] == "ok" and health["restarts"] == 0
