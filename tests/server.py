"""An HTTP server on the loopback that misbehaves as told, and remembers every request and every byte it sent."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Behaviour", "Request", "Server", "serve"]

CHUNK_BYTES = 16 * 1024
LONGEST_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How one request is answered; the default is as it should be."""

    status: int | None = None
    """Answer with this status and no file."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent in addition to, or instead of, the usual ones."""
    drop_after: int | None = None
    """Cut the connection after so many bytes of the body."""
    ignores_ranges: bool = False
    ignores_if_range: bool = False
    """Answer a range even if the file is another by now."""
    shifts_range: int = 0
    """Answer a range with one that begins so many bytes later."""
    content: bytes | None = None
    """Send this in place of the file."""
    has_length: bool = True
    """Say Content-Length; else the end of the connection is the end of the body."""
    is_chunked: bool = False
    """Send the body in chunks, which say no length but end in a mark; one that is dropped lacks the mark."""
    has_etag: bool = True
    seconds_per_chunk: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    range: str | None
    if_range: str | None
    num_sent: int
    """Bytes of the body."""
    status: int


Behave = Callable[[str, int], Behaviour]
"""From the path and the number of GET requests for it so far."""


class Server:
    """What the test sees: the address, the files by path, what was asked for and sent."""

    def __init__(self, files: dict[str, bytes], behave: Behave) -> None:
        self.files = files
        self.behave = behave
        self.url = ""
        self._requests: list[Request] = []
        self._num_gets: dict[str, int] = {}
        self._num_answering = 0
        self._changed = threading.Condition()

    @property
    def requests(self) -> list[Request]:
        """Those answered so far: a client may have its answer before the thread that sent it has noted so."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._num_answering == 0, timeout=LONGEST_ANSWER_SECONDS)
            return list(self._requests)

    def num_sent(self, path: str | None = None) -> int:
        """Bytes of bodies sent so far, of one file or of all."""
        return sum(request.num_sent for request in self.requests if path in (None, request.path))

    def gets(self, path: str | None = None) -> list[Request]:
        return [request for request in self.requests if request.method == "GET" and path in (None, request.path)]

    def count_get(self, path: str) -> int:
        with self._changed:
            self._num_gets[path] = self._num_gets.get(path, 0) + 1
            return self._num_gets[path] - 1

    @contextmanager
    def answering(self) -> Iterator[None]:
        with self._changed:
            self._num_answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_answering -= 1
                self._changed.notify_all()

    def remember(self, request: Request) -> None:
        with self._changed:
            self._requests.append(request)


@contextmanager
def serve(files: dict[str, bytes], behave: Behave = lambda path, num_gets: Behaviour()) -> Iterator[Server]:
    """A server of `files` (path with its leading slash -> content) for the length of the block."""
    server = Server(files, behave)
    http = _QuietServer(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are what the tests are about."""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
            pass

        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_GET(self) -> None:
            self._answer("GET")

        def _answer(self, method: str) -> None:
            with server.answering():
                self._answer_now(method)

        def _answer_now(self, method: str) -> None:
            behaviour = server.behave(self.path, server.count_get(self.path) if method == "GET" else -1)
            content = behaviour.content if behaviour.content is not None else server.files.get(self.path)
            if behaviour.status is not None or content is None:
                self._start(method, behaviour.status or 404, {"Content-Length": "0", **behaviour.headers})
                self._note(method, behaviour.status or 404, 0)
                return
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            headers = {"Content-Type": "application/octet-stream"}
            if behaviour.has_etag:
                headers["ETag"] = etag
            status, start = 200, 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if (
                asked
                and not behaviour.ignores_ranges
                and (behaviour.ignores_if_range or self.headers.get("If-Range", etag) == etag)
            ):
                status, start = 206, int(asked.group(1)) + behaviour.shifts_range
                if start >= len(content):
                    self._start(method, 416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                    self._note(method, 416, 0)
                    return
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            body = content[start:]
            if behaviour.is_chunked:
                headers["Transfer-Encoding"] = "chunked"
            elif behaviour.has_length:
                headers["Content-Length"] = str(len(body))
            else:
                headers["Connection"] = "close"
                self.close_connection = True
            self._start(method, status, {**headers, **behaviour.headers})
            num_sent = 0
            try:
                if method == "GET":
                    cut = len(body) if behaviour.drop_after is None else min(behaviour.drop_after, len(body))
                    while num_sent < cut:
                        piece = body[num_sent : min(cut, num_sent + CHUNK_BYTES)]
                        if behaviour.is_chunked:
                            self.connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                            num_sent += len(piece)
                        else:
                            num_sent += self.connection.send(piece)
                        if behaviour.seconds_per_chunk:
                            time.sleep(behaviour.seconds_per_chunk)
                    if behaviour.drop_after is not None:
                        self.close_connection = True
                    elif behaviour.is_chunked:
                        self.connection.sendall(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True
            finally:
                self._note(method, status, num_sent)

        def _start(self, method: str, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _note(self, method: str, status: int, num_sent: int) -> None:
            server.remember(
                Request(
                    method=method,
                    path=self.path,
                    range=self.headers.get("Range"),
                    if_range=self.headers.get("If-Range"),
                    num_sent=num_sent,
                    status=status,
                )
            )

    return Handler
