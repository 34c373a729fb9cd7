"""The HTTPS side of a rig: a listener on a free loopback port, with every fault that a network or an overloaded
service has. What is asked and answered is the service's; a Front knows nothing of keys.
"""

import email.utils
import http.server
import json
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field

MAX_BODY = 64 * 1024
PORTAL = b"<!DOCTYPE html><html><head><title>Welcome to Airport Wi-Fi</title></head><body>Please log in.</body></html>"


@dataclass
class Request:
    method: str
    path: str
    headers: dict
    body: bytes


@dataclass
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict = field(default_factory=dict)

    @classmethod
    def of(cls, status, document, content_type="application/json", **headers):
        return cls(status, json.dumps(document).encode(), content_type, headers)


class Faults:
    """What is wrong with the way to the service. All of it is off after `clear`."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.black_hole = False
        self.slow_loris = False
        self.portal = None  # None | "tls" | "html" | "json" | "redirect"
        self.status = None  # a 5xx to answer with
        self.throttled = False
        self.latency = 0.0
        self.skew = 0.0
        self.remaining = None  # how many requests status and throttled are for; None: all


class Front:
    """`service(request) -> Answer` behind TLS (or without, when `authorities` is None)."""

    def __init__(self, name, service, throttle, authorities):
        self.name, self.service, self.throttle, self.authorities = name, service, throttle, authorities
        self.faults = Faults()
        self.certificate = authorities and authorities.current
        self.lock = threading.Lock()
        self.connections = set()
        self.accepted = 0
        self.port = 0
        self.listener = None
        self.up()

    @property
    def url(self):
        return f"{'https' if self.authorities else 'http'}://127.0.0.1:{self.port}"

    def now(self):
        """The service's idea of the time."""
        return time.time() + self.faults.skew

    def up(self):
        """Idempotent. The port stays the same for the rig's life."""
        if self.listener:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self.listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self):
        """Connections are refused from now on, and those that are open break."""
        listener, self.listener = self.listener, None
        if listener:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.hang_up()

    def hang_up(self):
        with self.lock:
            for connection in self.connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        raw = connection
        with self.lock:
            self.connections.add(raw)
            self.accepted += 1
        try:
            self.swallow(raw)
            if self.authorities:
                served = self.authorities.stranger if self.faults.portal == "tls" else self.certificate
                connection = served.tls.wrap_socket(raw, server_side=True)
            _Handler(connection, raw, self)
        except (OSError, ssl.SSLError):
            pass
        finally:
            with self.lock:
                self.connections.discard(raw)
            connection.close()

    def swallow(self, raw):
        """Holds a connection without a byte of answer for as long as there is a black hole."""
        while self.faults.black_hole:
            readable, _, _ = select.select([raw], [], [], 0.05)
            if readable and not raw.recv(1, socket.MSG_PEEK):
                raise OSError("the client has left")
            if readable:
                time.sleep(0.05)

    def answer(self, request):
        faults = self.faults
        if faults.latency:
            time.sleep(faults.latency)
        if faults.portal == "html":
            return Answer(200, PORTAL, "text/html")
        if faults.portal == "json":
            return Answer.of(200, {"portal": "login required"})
        if faults.portal == "redirect":
            return Answer(302, PORTAL, "text/html", {"Location": f"{self.url}/login"})
        if (faults.status or faults.throttled) and self._counts():
            if faults.throttled:
                return self.throttle()
            return Answer(faults.status, b"<html><body>upstream connect error</body></html>", "text/html")
        return self.service(request)

    def _counts(self):
        with self.lock:
            if self.faults.remaining is None:
                return True
            self.faults.remaining -= 1
            return self.faults.remaining >= 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rig", ""
    # An idle connection of a client that was killed is not held for ever.
    timeout = 120

    def __init__(self, connection, raw, front):
        self.front, self.raw = front, raw
        super().__init__(connection, ("127.0.0.1", 0), None)

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(length, MAX_BODY))
        # Names in lower case: HTTP does not tell them apart.
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.front.swallow(self.raw)
        answer = self.front.answer(Request(self.command, self.path, headers, body))
        self.front.swallow(self.raw)
        self.send_response_only(answer.status)
        self.send_header("Date", email.utils.formatdate(self.front.now(), usegmt=True))
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if self.front.faults.slow_loris:
            self._drip()
        self.end_headers()
        self.wfile.write(answer.body)

    def _drip(self):
        """The head of the answer, a byte at a time, never finished while the fault lasts."""
        for byte in b"X-Padding: " + b"." * 100_000:
            if not self.front.faults.slow_loris:
                break
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)
        self.wfile.write(b"\r\n")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_any

    def log_message(self, *_):
        pass
