"""As much of the Hugging Face hub as a download needs, on this machine."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "abcd"


class Hub(ThreadingHTTPServer):
    """As much of the hub as a download needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.sent = 0  # bytes of parts of files
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(/revision/\w+)?(\?.*)?", self.path):
            files = self.server.repositories.get(match[1])
            if files is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            else:
                siblings = [{"rfilename": name} for name in files]
                record = {"id": match[1], "modelId": match[1], "sha": COMMIT, "siblings": siblings}
                self._send(200, json.dumps(record).encode(), {"Content-Type": "application/json"})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/?]+)/tree/\w+(\?.*)?", self.path):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.server.repositories.get(match[1], {}).items()
            ]
            self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", self.path):
            content = self.server.repositories.get(match[1], {}).get(match[2])
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                if span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                    first, last = map(int, span.groups())
                    self._send(206, content[first : last + 1], headers)
                    self.server.sent += last + 1 - first
                else:
                    self._send(200, content, headers)
        else:
            self._send(404, b"")

    do_HEAD = do_GET

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass
