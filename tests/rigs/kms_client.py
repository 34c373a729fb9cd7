#!/usr/bin/env python3
"""A Kubernetes KMS v2 client that is independent of Keystead's own code.

Speaks to the socket with gRPC's C core, with classes generated from proto/kms/v2/api.proto at run
time, and checks what kube-apiserver checks: version, health, that Status and Encrypt name the same
key, the bounds on sizes and annotations, the round trip, and that damaged or foreign ciphertexts are
refused with the right code.

    kms_client.py SOCKET [--authority TEXT | --derive-authority] [--proto FILE] [--timeout SECONDS]

Prints one line of JSON. Exit code 0: {"ok": true, ...}. Exit code 1: {"ok": false, "reason": ...}.
Interpreter and packages: scripts/rigs/python.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import secrets
import sys
import tempfile
import uuid

import grpc
from grpc_tools import protoc

MAX_BYTES = 1024
MAX_ANNOTATION_BYTES = 32 * 1024
# RFC 1123 subdomain with at least one dot: what kube-apiserver takes as an annotation's key.
ANNOTATION_KEY = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+")
DEFAULT_PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto" / "kms" / "v2" / "api.proto"


class Refused(Exception):
    """The server did something that kube-apiserver would not accept."""


def expect(condition, reason):
    if not condition:
        raise Refused(reason)


def generate(proto):
    """Returns the message and the service module generated from `proto`."""
    with tempfile.TemporaryDirectory(prefix="keystead-kms-client-") as out:
        code = protoc.main(
            ["protoc", f"--proto_path={proto.parent}", f"--python_out={out}", f"--grpc_python_out={out}", proto.name]
        )
        expect(code == 0, f"{proto} does not compile")
        sys.dont_write_bytecode = True
        sys.path.insert(0, out)
        try:
            return importlib.import_module(f"{proto.stem}_pb2"), importlib.import_module(f"{proto.stem}_pb2_grpc")
        finally:
            sys.path.remove(out)


def connect(socket, authority):
    # kube-apiserver sends `localhost` since 1.32, before that the path. None: what gRPC derives from the path.
    options = [("grpc.enable_http_proxy", 0)]
    if authority is not None:
        options.append(("grpc.default_authority", authority))
    return grpc.insecure_channel(f"unix:{os.path.abspath(socket)}", options=options)


class Checks:
    def __init__(self, messages, stub, timeout):
        self.messages, self.stub, self.timeout = messages, stub, timeout

    def call(self, method, request):
        # kube-apiserver waits for a connection instead of failing at the first refused one.
        return getattr(self.stub, method)(request, timeout=self.timeout, wait_for_ready=True)

    def status(self):
        answer = self.call("Status", self.messages.StatusRequest())
        expect(answer.version == "v2", f"Status: version is {answer.version!r}, not 'v2'")
        expect(answer.healthz == "ok", f"Status: healthz is {answer.healthz!r}, not 'ok'")
        self.check_key_id("Status", answer.key_id)
        return answer

    def encrypt(self, plaintext):
        answer = self.call("Encrypt", self.messages.EncryptRequest(plaintext=plaintext, uid=str(uuid.uuid4())))
        size = len(answer.ciphertext)
        expect(1 <= size <= MAX_BYTES, f"Encrypt: ciphertext has {size} bytes, not 1 to {MAX_BYTES}")
        expect(plaintext not in answer.ciphertext, "Encrypt: the ciphertext contains the plaintext")
        self.check_key_id("Encrypt", answer.key_id)
        total = 0
        for key, value in answer.annotations.items():
            total += len(key.encode()) + len(value)
            expect(ANNOTATION_KEY.fullmatch(key) and len(key) <= 253, f"Encrypt: {key!r} is no domain name with a dot")
            expect(plaintext not in value, f"Encrypt: annotation {key!r} contains the plaintext")
        expect(total <= MAX_ANNOTATION_BYTES, f"Encrypt: annotations have {total} bytes, over {MAX_ANNOTATION_BYTES}")
        return answer, total

    def decrypt(self, encrypted, **changes):
        fields = {
            "ciphertext": encrypted.ciphertext,
            "key_id": encrypted.key_id,
            "annotations": dict(encrypted.annotations),
            "uid": str(uuid.uuid4()),
        }
        fields.update(changes)
        return self.call("Decrypt", self.messages.DecryptRequest(**fields)).plaintext

    def decrypt_fails(self, what, code, encrypted, **changes):
        try:
            self.decrypt(encrypted, **changes)
        except grpc.RpcError as error:
            expect(
                error.code() == code,
                f"Decrypt with {what}: {error.code().name} ({error.details()}), not {code.name}",
            )
        else:
            raise Refused(f"Decrypt with {what} succeeded")

    @staticmethod
    def check_key_id(method, key_id):
        size = len(key_id.encode())
        expect(1 <= size <= MAX_BYTES, f"{method}: key_id has {size} bytes, not 1 to {MAX_BYTES}")


def another_key_id(key_id):
    """A key ID of the same shape that no server has minted: one character of the last part differs."""
    head, _, tail = key_id.rpartition(".")
    middle = len(tail) // 2
    other = "3" if tail[middle] != "3" else "4"
    changed = tail[:middle] + other + tail[middle + 1 :]
    return f"{head}.{changed}" if head else changed


def run(socket, authority, proto, timeout):
    messages, services = generate(proto)
    with connect(socket, authority) as channel:
        checks = Checks(messages, services.KeyManagementServiceStub(channel), timeout)
        status = checks.status()

        seed = secrets.token_bytes(32)
        first, annotation_bytes = checks.encrypt(seed)
        expect(
            first.key_id == status.key_id,
            f"Encrypt names key {first.key_id!r}, Status {status.key_id!r}",
        )
        second, _ = checks.encrypt(seed)
        expect(first.ciphertext != second.ciphertext, "Encrypt gave the same ciphertext twice")
        for encrypted in (first, second):
            expect(checks.decrypt(encrypted) == seed, "Decrypt returned another plaintext")

        invalid = grpc.StatusCode.INVALID_ARGUMENT
        size = len(first.ciphertext)
        for position in sorted({0, 1, size // 2, size - 1}):
            damaged = bytearray(first.ciphertext)
            damaged[position] ^= 1
            checks.decrypt_fails(f"byte {position} flipped", invalid, first, ciphertext=bytes(damaged))
        checks.decrypt_fails("a truncated ciphertext", invalid, first, ciphertext=first.ciphertext[:-1])
        checks.decrypt_fails("an empty ciphertext", invalid, first, ciphertext=b"")
        checks.decrypt_fails("an oversized ciphertext", invalid, first, ciphertext=bytes(MAX_BYTES + 1))
        checks.decrypt_fails("an empty key ID", invalid, first, key_id="")
        unknown = another_key_id(first.key_id)
        checks.decrypt_fails("an unknown key ID", grpc.StatusCode.NOT_FOUND, first, key_id=unknown)

        # What was refused must not have done any harm.
        expect(checks.decrypt(first) == seed, "Decrypt fails after refused requests")
        expect(checks.status().key_id == status.key_id, "Status names another key after refused requests")
    return {
        "ok": True,
        "version": status.version,
        "healthz": status.healthz,
        "key_id": status.key_id,
        "ciphertext_bytes": size,
        "annotations": sorted(first.annotations),
        "annotation_bytes": annotation_bytes,
        "refused": {"damaged": invalid.name, "unknown_key_id": grpc.StatusCode.NOT_FOUND.name},
        "client": f"grpcio {grpc.__version__}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("socket", help="path of the KMS socket")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--authority", default="localhost", help="what to send as :authority (default localhost)")
    said.add_argument("--derive-authority", action="store_true", help="leave :authority to gRPC, as old clients do")
    parser.add_argument("--proto", type=pathlib.Path, default=DEFAULT_PROTO)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for one call (default 10)")
    arguments = parser.parse_args()
    authority = None if arguments.derive_authority else arguments.authority
    try:
        result = run(arguments.socket, authority, arguments.proto.resolve(), arguments.timeout)
    except Refused as error:
        result = {"ok": False, "reason": str(error)}
    except grpc.RpcError as error:
        result = {"ok": False, "reason": f"{error.code().name}: {error.details()}"}
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
