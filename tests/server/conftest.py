"""A client of the server that a test module starts."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.serving import RunningServer, idle


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
    server.wait_until("idle again", lambda: idle(server))
    assert server.health()["restarts"] == 0
