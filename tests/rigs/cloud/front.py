"""The HTTPS side of a rig: a listener on a free loopback port, with every fault that a network or an overloaded
service has. What is asked and answered is the service's; a Front knows nothing of keys.
"""

import base64
import email.utils
import http.server
import json
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field

from .hostile import HOSTILE

MAX_BODY = 64 * 1024
#: As the services name them.
CIPHERTEXT = ("CiphertextBlob", "ciphertext")
KEY = ("Plaintext", "plaintext")
PORTAL = b"<!DOCTYPE html><html><head><title>Welcome to Airport Wi-Fi</title></head><body>Please log in.</body></html>"
GATEWAY = b"<html><body>upstream connect error or disconnect/reset before headers</body></html>"
FAULTS = (
    "refuse", "black-hole", "slow-loris", "latency", "http-500", "http-503", "throttle", "captive-tls", "captive-html",
    "redirect", "cut", "foreign-json", "too-long", "other-key", "truncate", "short-key", "slow-head", *HOSTILE,
)


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


class Front:
    """`service(request) -> Answer` behind TLS, or without it when `authorities` is None.

    `throttled() -> Answer` is how this service says that there were too many requests.
    """

    def __init__(self, name, service, throttled, authorities):
        self.name, self.service, self.throttled, self.authorities = name, service, throttled, authorities
        self.certificate = authorities and authorities.current
        self.skew = 0.0
        self.lock = threading.Lock()
        self.faults, self.connections = {}, set()
        # Bound for the rig's life and never listening: while connections are refused, nobody else is given the port.
        self.place = self._bind(0)
        self.port, self.listener = self.place.getsockname()[1], None
        self.listen()

    @property
    def url(self):
        return f"{'https' if self.authorities else 'http'}://127.0.0.1:{self.port}"

    def now(self):
        """The service's idea of the time."""
        return time.time() + self.skew

    def fault(self, name, count=None, seconds=None):
        """From now on, for `count` requests or until `clear`."""
        with self.lock:
            self.faults[name] = {"count": count, "seconds": seconds}
        if name == "refuse":
            self.close()
        if name == "captive-tls":
            self.hang_up()

    def clear(self):
        with self.lock:
            self.faults.clear()
        self.listen()

    def has(self, name):
        with self.lock:
            return name in self.faults

    def take(self, name):
        """Whether the fault is for this request, which is then counted. Its parameters, or None."""
        with self.lock:
            fault = self.faults.get(name)
            if fault and fault["count"] is not None:
                fault["count"] -= 1
                if fault["count"] <= 0:
                    del self.faults[name]
            return fault

    def listen(self):
        """Idempotent. The port stays the same for the rig's life."""
        if self.listener:
            return
        self.listener = self._bind(self.port)
        self.listener.listen(64)
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    @staticmethod
    def _bind(port):
        """A socket on `port`, or on a free one; ours may share it."""
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    def close(self):
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
        # Another descriptor of the same connection, which stays usable below TLS.
        raw = connection.dup()
        with self.lock:
            self.connections.add(raw)
        try:
            self.swallow(raw)
            if self.authorities:
                served = self.authorities.stranger if self.take("captive-tls") else self.certificate
                connection = served.tls.wrap_socket(connection, server_side=True)
            _Handler(connection, raw, self)
        except (OSError, ssl.SSLError):
            pass
        finally:
            with self.lock:
                self.connections.discard(raw)
            raw.close()
            connection.close()

    def swallow(self, raw):
        """Holds a connection without a byte of answer for as long as there is a black hole."""
        if not self.take("black-hole"):
            return
        while True:
            readable, _, _ = select.select([raw], [], [], 0.05)
            if not self.has("black-hole"):
                # Cleared; a counted one holds its own connections until the client goes.
                return
            if readable and not raw.recv(1, socket.MSG_PEEK):
                raise OSError("the client has left")
            if readable:
                time.sleep(0.05)

    def answer(self, request):
        if fault := self.take("latency"):
            time.sleep(float(fault["seconds"] or 0.5))
        if self.take("captive-html"):
            return Answer(200, PORTAL, "text/html")
        if self.take("foreign-json"):
            return Answer.of(200, {"portal": "login required"})
        if self.take("redirect"):
            return Answer(302, PORTAL, "text/html", {"Location": f"{self.url}/login"})
        if self.take("too-long"):
            return Answer(200, b'{"padding": "' + b"." * (1 << 20) + b'"}')
        if self.take("http-500"):
            return Answer(500, GATEWAY, "text/html")
        if self.take("http-503"):
            return Answer(503, GATEWAY, "text/html")
        if self.take("throttle"):
            return self.throttled()
        answer = self.service(request)
        if self.has("truncate"):
            shorten(answer, CIPHERTEXT, 8)
        if self.has("short-key"):
            shorten(answer, KEY, 16)
        return answer


def truncated(text, by=8):
    """Base64 of bytes that have lost their last ones."""
    return base64.b64encode(base64.b64decode(text)[:-by]).decode()


def shorten(answer, names, by):
    try:
        document = json.loads(answer.body)
    except ValueError:
        return
    for name in names:
        if isinstance(document, dict) and document.get(name):
            document[name] = truncated(document[name], by)
            answer.body = json.dumps(document).encode()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
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
        for name, pieces in HOSTILE.items():
            if self.front.take(name):
                self.close_connection = True
                for piece in pieces(answer.body):
                    self.wfile.write(piece)
                return
        if self.front.take("slow-head"):
            for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 1000:
                self.wfile.write(bytes([byte]))
                time.sleep(1)
        self.send_response_only(answer.status)
        self.send_header("Date", email.utils.formatdate(self.front.now(), usegmt=True))
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.front.take("slow-loris"):
            for byte in answer.body:
                self.wfile.write(bytes([byte]))
                time.sleep(1)
        elif self.front.take("cut"):
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_any

    def log_message(self, *_):
        pass
