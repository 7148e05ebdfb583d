"""A server on this machine in place of the web.

with serving(lambda request: (200, {}, b"a red heart")) as http: ...        # asked at http.address
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers (the content's length is added unless it is among them), and content."""


class Server(ThreadingHTTPServer):
    """On this machine, in a thread: GET and HEAD are answered by what `answer` makes of the request (its `path`)."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], Answer | None]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        if (answered := self.server.answer(self)) is None:
            return
        status, headers, body = answered
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], Answer | None]) -> Iterator[Server]:
    """A `Server` while open; an answer of None is none at all."""
    http = Server(answer)
    try:
        yield http
    finally:
        http.stop()
