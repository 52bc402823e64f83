"""A server on loopback that answers as the hub does, or as a test says."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """Large files lie on a second server, to which the first redirects; small ones behind a relative redirect."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.tags = True  # whether files have checksums
        self.wrong: set[str] = set()  # files whose bytes come damaged
        self.status: dict[str, int] = {}  # answers other than 200
        self.stop_after: int | None = None  # bytes of a large file, before the connection ends ...
        self.hang = False  # ... or hangs
        self.raw: dict[str, Callable] = {}  # what answers a method itself, by its name: raw(request, the file's bytes)
        self.requests: list[tuple[str, str, str, dict]] = []  # server, method, file, headers
        self.front, self.back = (self._serve(name) for name in ("front", "back"))
        self.url = f"http://127.0.0.1:{self.front.server_port}"

    def _serve(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, name)

            do_GET = do_HEAD

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def close(self):
        for server in (self.front, self.back):
            server.shutdown()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, server: str):
        path = request.path.split("?")[0].strip("/")
        file = re.sub("/resolve/[^/]+/", "/", path.removeprefix("cache/"))
        self.requests.append((server, request.command, file, dict(request.headers)))
        if raw := self.raw.get(request.command):
            request.close_connection = True
            with contextlib.suppress(OSError):  # the downloader hangs up
                raw(request, self.files.get(file, b""))
            return
        if (status := self.status.get(file, 200 if file in self.files else 404)) != 200:
            request.send_error(status)
            return
        data = self.files[file]
        large = not file.endswith(".json")
        checksum = hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0" % len(data) + data)
        headers = {"ETag": f'W/"{checksum.hexdigest()}"' if self.tags else '"1-of-a-kind"'}
        if server == "front" and large:
            if self.tags:
                headers = {"X-Linked-Size": len(data), "X-Linked-ETag": f'"{checksum.hexdigest()}"', "ETag": '"other"'}
            status, headers["Location"] = 302, f"http://127.0.0.1:{self.back.server_port}/{file}?key=secret"
        elif server == "front" and not path.startswith("cache/"):
            status, headers = 307, {"Location": f"/cache/{file}"}
        if status != 200:
            self._send(request, status, headers, b"")
            return
        if server == "back" and self.tags:
            headers["ETag"] = '"of-another-kind"'
        whole, start = len(data), 0
        if self.ranges and (asked := request.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, headers["Content-Range"] = 206, f"bytes {start}-{whole - 1}/{whole}"
        body = data[start:]
        if file in self.wrong:
            body = bytes(len(body))
        self._send(request, status, headers, body, self.stop_after if large else None)

    def _send(self, request, status: int, headers: dict, body: bytes, stop_after: int | None = None):
        request.send_response(status)
        for key, value in {**headers, "Content-Length": len(body)}.items():
            request.send_header(key, str(value))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:stop_after])
            if stop_after is not None and self.hang:
                request.wfile.flush()
                time.sleep(60)

    def asked(self, method: str = "GET") -> dict[str, str | None]:
        """The files whose bodies were sent, each with the range asked for."""
        return {
            file: headers.get("Range")
            for server, how, file, headers in self.requests
            if how == method and (server == "back" or file.endswith(".json"))
        }
