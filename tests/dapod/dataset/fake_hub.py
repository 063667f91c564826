"""The few answers of the Hugging Face hub that fetching a data set asks for, over loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Repositories = Mapping[str, Mapping[str, bytes]]
"""Files by repository and path; all at one commit, on the branch main."""


@contextmanager
def serving(repositories: Repositories) -> Iterator[str]:
    """The hub's URL, as HF_ENDPOINT wants it."""

    class Handler(_Handler):
        known = repositories

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    known: Repositories
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        parts = parts[1:] if parts[0] == "api" else parts
        kind, repository, verb, rest = parts[0], "/".join(parts[1:3]), parts[3], parts[4:]
        assert kind == "datasets"
        files = self.known.get(repository)
        if repository == "team/gated":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif files is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif rest[0] not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif verb == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repository, "sha": COMMIT, "siblings": siblings})
        elif verb == "tree":
            self._json([_entry(name, content) for name, content in files.items()])
        else:
            content = files["/".join(rest[1:])]
            self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
