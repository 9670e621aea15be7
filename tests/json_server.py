"""A server on this machine that answers by a rule: what the doubles of model servers stand on."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)


@dataclass(frozen=True)
class Reply:
    """A reply: bytes as they are, an iterator of bytes in chunks, anything else as JSON."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rule: Callable[[Asked], Reply]

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        data = self.rfile.read(int(headers.get("content-length", 0)))
        reply = type(self).rule(Asked(self.command, self.path, headers, data))
        chunked = isinstance(reply.body, Iterator)
        whole = b"" if chunked else reply.body
        if not isinstance(whole, bytes):
            whole = json.dumps(whole).encode()
        length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": len(whole)}
        self.send_response(reply.status)
        named = {"Content-Type": "application/json", **length, **(reply.headers or {})}
        for name, value in named.items():
            self.send_header(name, str(value))
        self.end_headers()
        if chunked:
            for piece in (*reply.body, b""):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif self.command != "HEAD":
            self.wfile.write(whole)

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def json_server(rule: Callable[[Asked], Reply], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve on a free port, over `tls` if given, every request in a thread; yield the address."""
    handler = type("Handler", (_Handler,), {"rule": staticmethod(rule)})
    listener = _Listener(("127.0.0.1", 0), handler)
    if tls is not None:
        listener.socket = tls.wrap_socket(listener.socket, server_side=True)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
