"""A server on this machine in place of the web.

with serving(lambda request: (200, {}, b"a red heart")) as http: ...        # asked at http.address
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers (the content's length is added unless it is among them), and content."""


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], Answer | None]) -> Iterator[ThreadingHTTPServer]:
    """While open, GET and HEAD are answered by what `answer` makes of the request (its `path`); None: not at all."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if (answered := answer(self)) is None:
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

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.address = f"http://127.0.0.1:{http.server_address[1]}/"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield http
    finally:
        http.shutdown()
        http.server_close()
