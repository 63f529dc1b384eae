"""A web server on loopback that misbehaves as told, for a bounded number of requests."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server gives and what it was asked for (the ``Range`` header of each request, or "")."""

    content: bytes
    cut_after: list[int] = field(default_factory=list)  # bytes given before the line breaks, one a request
    statuses: list[int] = field(default_factory=list)  # an error instead of the content, one a request
    ranges: bool = True
    kind: str = "application/octet-stream"
    length: int | None = None  # a Content-Length of its own
    stall: list[float] = field(default_factory=list)  # seconds of silence after half of the content, one a request
    drip: tuple[int, float] | None = None  # bytes at a time, seconds between
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(site: Site, most: int = 20) -> Iterator[Site]:
    """The site at ``site.url``; a request beyond ``most`` is answered 404 so that no mistake runs forever."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            site.asked.append(wanted)
            if len(site.asked) > most:
                self.send_error(404)
                return
            if site.statuses:
                self.send_error(site.statuses.pop(0))
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and site.ranges else 0
            if start and start >= len(site.content):
                self.send_error(416)
                return
            body = site.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
            self.send_header("Content-Type", site.kind)
            self.send_header("Content-Length", str(len(body) if site.length is None else site.length))
            self.end_headers()
            if site.cut_after:
                body = body[: site.cut_after.pop(0)]
            with suppress(OSError):  # the client had enough
                self.give(body)

        def give(self, body: bytes) -> None:
            if site.stall:
                self.wfile.write(body[: len(body) // 2])
                time.sleep(site.stall.pop(0))
                return
            size, wait = site.drip or (len(body) or 1, 0.0)
            for k in range(0, len(body), size):
                self.wfile.write(body[k : k + size])
                self.wfile.flush()
                time.sleep(wait)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/file.bin"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
