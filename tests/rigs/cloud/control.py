"""The control interface that all cloud rigs share; `tests/rigs/README.md` lists the actions."""

import argparse
import http.server
import json
import pathlib
import signal
import sys
import threading

from .front import FAULTS
from .proxy import Proxy


class Refused(Exception):
    """The action cannot be done; the text says why."""


class Journal:
    """What clients asked for, in order, without what is secret."""

    def __init__(self):
        self.lock, self.entries = threading.Lock(), []

    def add(self, **entry):
        """Returns the entry: its `code` is set once the answer is known."""
        with self.lock:
            self.entries.append(entry)
        return entry

    def all(self):
        with self.lock:
            return list(self.entries)

    def forget(self):
        with self.lock:
            self.entries.clear()


class Control:
    """POST /control and GET /state for a `rig`, which has fronts (a dict by name), journal, keys(), act() and reset()."""

    def __init__(self, rig):
        rig.proxy = Proxy()
        handler = type("Handler", (_Handler,), {"rig": rig, "lock": threading.Lock()})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"


def act(rig, order):
    action = order["action"]
    fronts = rig.fronts
    if "service" in order:
        if order["service"] not in fronts:
            raise Refused(f"no service {order['service']}; there is {', '.join(fronts)}")
        fronts = {order["service"]: fronts[order["service"]]}
    match action:
        case "fault":
            if order["fault"] not in FAULTS:
                raise Refused(f"no fault {order['fault']}; there is {', '.join(FAULTS)}")
            for front in fronts.values():
                front.fault(order["fault"], order.get("count"), order.get("seconds"))
        case "clear":
            for front in fronts.values():
                front.clear()
        case "skew":
            for front in fronts.values():
                front.skew = float(order["seconds"])
        case "change-ca":
            for front in fronts.values():
                front.certificate = front.authorities and front.authorities.next
        case "expire-certificate":
            for front in fronts.values():
                front.certificate = front.authorities and front.authorities.expired
        case "proxy-refuses":
            rig.proxy.refuses = True
        case "reset":
            for front in rig.fronts.values():
                front.clear()
                front.skew, front.certificate = 0.0, front.authorities and front.authorities.current
            rig.reset()
            rig.proxy.reset()
            rig.journal.forget()
        case _:
            if not rig.act(action, order):
                raise Refused(f"this rig knows no action {action}")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rig = lock = None

    def do_GET(self):
        if self.path == "/state":
            return self._reply(200, self._state())
        return self._reply(404, {"ok": False, "error": "there is GET /state and POST /control"})

    def _state(self):
        return {"requests": self.rig.journal.all(), "keys": self.rig.keys(), "tunnels": self.rig.proxy.tunnels}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            with self.lock:
                act(self.rig, json.loads(body))
            self._reply(200, {"ok": True})
        except (Refused, KeyError, ValueError, TypeError, AttributeError) as error:
            self._reply(400, {"ok": False, "error": f"{type(error).__name__}: {error}"})

    def _reply(self, status, document):
        body = json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main(description, start):
    """`start(folder)` returns a rig and what is special about it; serves until standard input ends, or SIGTERM with --stay."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--state", type=pathlib.Path, required=True, help="folder for the CAs, the credentials and rig.json")
    parser.add_argument("--stay", action="store_true", help="serve until SIGTERM, not until standard input ends")
    arguments = parser.parse_args()
    folder = arguments.state.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rig, special = start(folder)
    announced = {
        "control": Control(rig).url,
        "ca_file": str(rig.authorities.current.path),
        "next_ca_file": str(rig.authorities.next.path),
        "proxy": rig.proxy.url,
        "endpoints": {name: front.url for name, front in rig.fronts.items()},
        **special,
    }
    secret_file(folder / "rig.json", json.dumps(announced, indent=2) + "\n")
    print(json.dumps(announced), flush=True)
    if arguments.stay:
        signal.sigwait([signal.SIGTERM, signal.SIGINT])
    else:
        while sys.stdin.buffer.read(4096):
            pass


def secret_file(path, text):
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.rename(path)
    return str(path)
