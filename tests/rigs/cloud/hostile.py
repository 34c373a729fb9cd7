"""Answers that no sound service gives. Each is written in place of the service's own answer, as bytes; the connection is
closed behind it. The endless ones end with the client.
"""

import email.utils
import gzip

CHUNK = b"." * (64 << 10)


def head(status="200 OK", version="HTTP/1.1", *fields):
    date = email.utils.formatdate(usegmt=True)
    lines = [f"{version} {status}", f"Date: {date}", "Content-Type: application/json", "Connection: close", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def sized(body, *fields):
    yield head("200 OK", "HTTP/1.1", f"Content-Length: {len(body)}", *fields) + body


def ten_gigabytes(_):
    yield head("200 OK", "HTTP/1.1", f"Content-Length: {10 << 30}")
    for _ in range((10 << 30) // len(CHUNK)):
        yield CHUNK


def endless(_):
    yield head("200 OK", "HTTP/1.1", "Transfer-Encoding: chunked")
    while True:
        yield b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK)


def endless_head(_):
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-Padding: " + CHUNK + b"\r\n"


def many_headers(_):
    fields = "".join(f"X-{number}: 1\r\n" for number in range(1000))
    yield f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\n{{}}".encode()


def endless_continue(_):
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n" * 100


def no_http(_):
    yield b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"


def unsaid_end(body):
    """Ends with the connection, and TLS does not vouch for that: whoever cuts it decides where."""
    yield head("200 OK", "HTTP/1.0") + body


def old_http(body):
    yield head("200 OK", "HTTP/1.0", f"Content-Length: {len(body)}") + body


def other_type(body):
    yield head("200 OK", "HTTP/1.1", f"Content-Length: {len(body)}").replace(b"application/json", b"text/html") + body


def two_dates(body):
    yield from sized(body, "Date: Fri, 31 Dec 1999 23:59:59 GMT")


HOSTILE = {
    "ten-gigabytes": ten_gigabytes,
    "endless": endless,
    "endless-head": endless_head,
    "many-headers": many_headers,
    "endless-continue": endless_continue,
    "no-http": no_http,
    "unsaid-end": unsaid_end,
    "two-lengths": lambda body: sized(body, "Content-Length: 7"),
    "gzip": lambda body: sized(gzip.compress(body), "Content-Encoding: gzip"),
    "not-utf8": lambda body: sized(body.replace(b'": "', b'": "\xff\xfe', 1)),
    "deep-json": lambda _: sized(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "each-field-twice": lambda body: sized(body[:-1] + b"," + body[1:]),
    "null": lambda _: sized(b"null"),
    "empty": lambda _: sized(b""),
    # Odd, but all of the service's answer is there.
    "http-1.0": old_http,
    "other-type": other_type,
    "two-dates": two_dates,
}
