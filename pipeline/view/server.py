"""The library over HTTP, for one person on this machine: GET only, loopback only, nothing from elsewhere.

A request that names another host is refused, so that no web page can reach the shards through a rebound name.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from shards.errors import UserError

from .library import Library, NotThereError

HOST = "127.0.0.1"
_PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": ("view.html", "text/html"),
    "/view.css": ("view.css", "text/css"),
    "/view.js": ("view.js", "text/javascript"),
    "/detail.js": ("detail.js", "text/javascript"),
}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
_MOST_ROWS = 200


class ViewServer(ThreadingHTTPServer):
    """Bound to loopback; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, library: Library, port: int) -> None:
        self.library = library
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ViewServer

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (HOST, "localhost"):
            self._json(HTTPStatus.FORBIDDEN, {"error": f"host {host}: this page is at {self.server.url} only"})
            return
        parts = urlsplit(self.path)
        if parts.path in _FILES:
            name, kind = _FILES[parts.path]
            self._send(HTTPStatus.OK, (_PAGE / name).read_bytes(), kind)
            return
        try:
            self._json(HTTPStatus.OK, answer(self.server.library, parts.path, _arguments(parts.query)))
        except NotThereError as e:
            self._json(HTTPStatus.NOT_FOUND, {"error": str(e)})
        except (KeyError, ValueError) as e:
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"{self.path}: missing or wrong value ({e})"})
        except UserError as e:
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(e)})

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads a log of clicks."""

    def _json(self, status: HTTPStatus, value: Any) -> None:
        body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        self._send(status, body, "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page went on to another row


def answer(library: Library, path: str, given: dict[str, str]) -> dict[str, Any]:
    """The JSON value of one endpoint.

    Raises:
        NotThereError: no such endpoint, dataset, row or position.
        KeyError, ValueError: an argument is missing or not a number.
        UserError: shards or student cannot be read.
    """
    match path:
        case "/api/about":
            return library.about()
        case "/api/rows":
            count = max(1, min(int(given.get("count", 50)), _MOST_ROWS))
            start = max(0, int(given.get("from", 0)))
            return library.rows(given["data"], start, count, given.get("q", ""), given.get("source", ""))
        case "/api/row":
            return library.row(given["data"], int(given["row"]))
        case "/api/scores":
            return library.scores(given["data"], int(given["row"]))
        case "/api/position":
            student = given.get("student") == "1"
            return library.position(given["data"], int(given["row"]), int(given["position"]), with_student=student)
        case "/api/worst":
            return library.worst(given["data"], given["by"], max(1, min(int(given.get("count", 100)), _MOST_ROWS)))
    raise NotThereError(f"{path}: no such page")


def _arguments(query: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query).items()}
