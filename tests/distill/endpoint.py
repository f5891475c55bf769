"""A stand-in for a teacher's endpoint: answers at once, and fails as endpoints do."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

# A function of the request's body and how often it was asked: a response, or None for a good answer.
Fault = Callable[[dict[str, Any], int], "web.Response | None"]


def completion(content: str, finish_reason: str = "stop", **message: Any) -> web.Response:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content} | message,
        "finish_reason": finish_reason,
    }
    return web.json_response({"choices": [choice], "usage": {"completion_tokens": 12}})


def good(body: dict[str, Any]) -> web.Response:
    return completion(
        "<think>\nIt is asked for a test.\n</think>\n\nThe answer is B. A test comes first here."
    )


class Endpoint:
    """Serves on a free port from a thread of its own."""

    def __init__(self, fault: Fault = lambda body, n: None) -> None:
        self.fault = fault
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            key = f"{body['messages'][0]['content']}:{body['seed']}"
            self.asked[key] += 1
            await asyncio.sleep(0.01)
            if (said := self.fault(body, self.asked[key])) is not None:
                if said.status == 599:  # hang up
                    assert request.transport
                    request.transport.close()
                return said
            return good(body)
        finally:
            self.at_once -= 1

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        assert site._server
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[attr-defined]
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
