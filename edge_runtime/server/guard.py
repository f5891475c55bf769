"""What every request passes before a route sees it: Host header, key, size and pace of the body.

A page on the internet can make a browser talk to a server on this machine, under a name that it points
here. So a Host header that nobody expects is refused, and no other origin may read an answer.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..errors import (
    BodyTooLarge,
    ForbiddenHost,
    InvalidRequest,
    MedgeError,
    RequestTimeout,
    Unauthorized,
)
from .openai import error_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What a browser needs before anybody can type a key.
OPEN_PATHS = frozenset({"/", "/favicon.ico"})
OPEN_PREFIX = "/page/"

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware.

    Args:
        app: what to protect.
        hosts: names that the Host header may have, beside loopback ones. "*" allows all.
        api_key: None asks for no key.
        origin: one origin that may call from a page elsewhere.
        max_body: bytes.
        body_timeout_s: a body must have arrived by then.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: frozenset[str] = frozenset(),
        api_key: str | None = None,
        origin: str | None = None,
        max_body: int = 2_000_000,
        body_timeout_s: float = 30.0,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._key = api_key.encode() if api_key else None
        self._origin = origin.encode() if origin else None
        self._max_body = max_body
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        guarded = self._with_headers(send, headers)
        try:
            self._check_host(headers)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await self._preflight(guarded, headers)
                return
            self._check_key(scope["path"], headers)
            body = b""
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                body = await self._body(headers, receive)
        except MedgeError as error:
            await _refuse(guarded, error)
            return
        await self._app(scope, _replay(body, receive), guarded)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        value = headers.get(b"host", b"").decode("latin-1").lower()
        name = value[1:].split("]")[0] if value.startswith("[") else value.rsplit(":", 1)[0]
        if not (is_loopback(name) or name in self._hosts or "*" in self._hosts):
            raise ForbiddenHost(
                f"The Host header {value!r:.100} is not allowed. Use the address that the server was "
                "started with, or add the name with --allow-host."
            )

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._key is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise Unauthorized(
                "The key is missing or wrong. Send the header Authorization: Bearer KEY with the key that "
                "the server was started with."
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._max_body:
            raise self._too_large(int(declared[:20]))
        parts: list[bytes] = []
        size = 0
        loop = asyncio.get_running_loop()
        until = loop.time() + self._body_timeout_s
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - loop.time()))
            except asyncio.TimeoutError:
                raise RequestTimeout(
                    f"The body did not arrive within {self._body_timeout_s:g} s ({size} bytes did). "
                    "Send it faster, or start the server with a larger --body-timeout-s."
                ) from None
            if message["type"] == "http.disconnect":
                raise InvalidRequest("The connection closed before the body was complete.")
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                raise self._too_large(size)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self, size: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body has {size} bytes or more; the limit is {self._max_body}. Send less, or start the "
            "server with a larger --max-body-mb."
        )

    def _with_headers(self, send: Send, headers: dict[bytes, bytes]) -> Send:
        extra = list(SECURITY_HEADERS)
        if self._origin and headers.get(b"origin") == self._origin:
            extra += [(b"access-control-allow-origin", self._origin), (b"vary", b"Origin")]
        docs = b"content-security-policy"

        async def wrapped(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(h for h in extra if not (h[0] == docs and docs in own)),
                ]
            await send(message)

        return wrapped

    async def _preflight(self, send: Send, headers: dict[bytes, bytes]) -> None:
        if not self._origin or headers.get(b"origin") != self._origin:
            raise ForbiddenHost(
                "Pages of other origins may not call this server. Allow one with --allow-origin."
            )
        allow = [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": allow})
        await send({"type": "http.response.body", "body": b""})


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then whatever comes: the end of the connection."""
    pending = True

    async def replay() -> MutableMapping[str, Any]:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _refuse(send: Send, error: MedgeError) -> None:
    body = json.dumps(error_body(error)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # What is left of the body is not read, so nothing else can follow on this connection.
        (b"connection", b"close"),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
