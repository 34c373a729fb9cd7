"""The control interface that all cloud rigs share: POST /control with one JSON object, on a loopback port of its own.

    {"action": "disable-key"}                      {"action": "errors-5xx", "status": 503, "count": 2}

The answer is {"ok": true, "state": {…}}, or {"ok": false, "reason": …} with status 400. GET /control gives the state,
GET /requests what clients have sent so far (tokens and secrets left out), DELETE /requests forgets that.
`tests/rigs/README.md` lists the actions.
"""

import http.server
import json
import threading
import time


class Refused(Exception):
    """The action cannot be done; the text says why."""


class Journal:
    """What clients asked for, in order."""

    def __init__(self):
        self.lock, self.entries = threading.Lock(), []

    def add(self, **entry):
        with self.lock:
            self.entries.append(entry)

    def take(self, forget):
        with self.lock:
            entries = list(self.entries)
            if forget:
                self.entries.clear()
            return entries


def transport_action(front, action, order):
    """The actions that are about the way to the service. False: it is another one."""
    faults = front.faults
    on = bool(order.get("on", True))
    match action:
        case "down":
            front.down()
        case "up":
            faults.clear()
            front.up()
        case "black-hole":
            faults.black_hole = on
        case "slow-loris":
            faults.slow_loris = on
        case "captive-portal":
            # tls: someone else's certificate. html, json, redirect: a certificate that is trusted, and a foreign answer.
            faults.portal = order.get("mode", "tls") if on else None
            front.hang_up()
        case "errors-5xx":
            faults.status, faults.remaining = (int(order.get("status", 500)) if on else None), order.get("count")
        case "throttle":
            faults.throttled, faults.remaining = on, order.get("count")
        case "latency":
            faults.latency = float(order.get("seconds", 0.5)) if on else 0.0
        case "skew":
            faults.skew = float(order.get("seconds", 20 * 60)) if on else 0.0
        case "change-ca":
            authorities = front.authorities
            front.certificate = authorities.next if on else authorities.current
            front.hang_up()
        case _:
            return False
    return True


class Control:
    """`rig` has fronts (a dict by name, the first being the one meant when none is named), journal, state(), act()."""

    def __init__(self, rig):
        handler = type("Handler", (_Handler,), {"rig": rig, "lock": threading.Lock()})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rig = lock = None

    def do_GET(self):
        if self.path == "/control":
            return self._reply(200, {"ok": True, "state": self._state()})
        if self.path == "/requests":
            return self._reply(200, self.rig.journal.take(forget=False))
        return self._reply(404, {"ok": False, "reason": "there is /control and /requests"})

    def do_DELETE(self):
        self._reply(200, self.rig.journal.take(forget=True))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            order = json.loads(body)
            with self.lock:
                self._act(order)
            self._reply(200, {"ok": True, "state": self._state()})
        except (Refused, KeyError, ValueError, TypeError, AttributeError) as error:
            self._reply(400, {"ok": False, "reason": f"{type(error).__name__}: {error}"})

    def _act(self, order):
        action, rig = order["action"], self.rig
        if action == "reset":
            for front in rig.fronts.values():
                front.faults.clear()
                front.certificate = front.authorities and front.authorities.current
                front.up()
            rig.reset()
            return
        front = order.get("service", next(iter(rig.fronts)))
        if front not in rig.fronts:
            raise Refused(f"no service {front}; there is {', '.join(rig.fronts)}")
        if not transport_action(rig.fronts[front], action, order) and not rig.act(action, order):
            raise Refused(f"this rig knows no action {action}")

    def _state(self):
        fronts = {
            name: {"url": front.url, "up": front.listener is not None, "connections": front.accepted}
            for name, front in self.rig.fronts.items()
        }
        return {"services": fronts, **self.rig.state()}

    def _reply(self, status, document):
        body = json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def announce(folder, document):
    """Writes `document` to DIR/rig.json and prints it: the rig is ready."""
    text = json.dumps(document, indent=2)
    new = folder / "rig.json.new"
    new.write_text(text + "\n")
    new.chmod(0o600)
    new.rename(folder / "rig.json")
    print(json.dumps(document), flush=True)


def live(until_eof):
    """Returns when standard input ends (so that a rig does not outlive the test that started it), or never."""
    import sys

    if until_eof:
        while sys.stdin.buffer.read(4096):
            pass
        return
    while True:
        time.sleep(3600)
