#!/usr/bin/env python3
"""AWS KMS, STS and instance metadata on loopback: `scripts/rigs/cloud aws --state DIR`. What it does is in tests/rigs/README.md."""

import base64
import json
import pathlib
import secrets
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from cloud.certificates import Authorities  # noqa: E402
from cloud.control import Journal, Refused, main, secret_file  # noqa: E402
from cloud.front import Answer, Front, truncated  # noqa: E402
from kms import JSON, Kms, Moto  # noqa: E402
from oracle import Failure, verify  # noqa: E402
from sts import Metadata, Sts  # noqa: E402

REGION = "eu-central-1"
USER = "arn:aws:iam::123456789012:user/keystead"
SECRET_FIELDS = ("Plaintext", "CiphertextBlob")


class Rig:
    def __init__(self, folder):
        self.authorities = Authorities(folder)
        self.journal = Journal()
        moto = Moto(REGION)
        self.kms = Kms(moto)
        self.access_key, self.secret = moto.create_user()
        moto.prove_that_it_checks(self.access_key, self.secret, self.kms.key.id)
        self.known = {self.access_key: self.secret}
        self.sts = Sts(self.journal, moto, moto.create_role(), self.known)
        self.sts.now = time.time
        # In a file, and so it outlives a reset.
        self.lasting = self.sts.session("given-by-hand")
        self.tampering = None
        self.fronts = {
            "kms": Front("kms", self.serve, throttled, self.authorities),
            "sts": Front("sts", self.sts, throttled, self.authorities),
            "imds": Front("imds", Metadata(self.journal, self.sts), throttled, None),
        }
        self.sts.now = self.fronts["sts"].now

    def reset(self):
        self.kms.reset()
        self.sts.reset()
        self.tampering = None
        self.known[self.access_key] = self.secret
        self.lasting[1].expires = time.time() + 3600

    def act(self, action, order):
        kms = self.kms
        key = kms.find(order.get("key", kms.key.id))
        match action:
            case "disable-key" | "cancel-deletion":
                # As in AWS: a key whose deletion is cancelled comes back disabled.
                key.state = "Disabled"
            case "enable-key":
                key.state = "Enabled"
            case "schedule-deletion":
                key.state, key.deletion = "PendingDeletion", time.time() + int(order.get("days", 7)) * 86400
            case "delete-key":
                key.state = "Deleted"
            case "key-store-away":
                key.state = "Unavailable"
            case "rotate-key":
                key.rotate()
            case "deny":
                kms.denied |= set(order.get("operations", kms.OPERATIONS))
            case "allow":
                kms.denied.clear()
            case "revoke-credential":
                # The static key is deleted, sessions end, and no new ones are given out.
                self.known.pop(self.access_key, None)
                self._expire_sessions()
                self.sts.revoked = True
            case "restore-credential":
                self.known[self.access_key] = self.secret
                self.sts.revoked = False
            case "expire-tokens":
                self._expire_sessions()
            case "token-life":
                self.sts.life = int(order["seconds"])
            case "tamper":
                # Changes what arrives before it is verified, as somebody in between would: body, target, date, host, signature.
                self.tampering = order["part"]
            case "debt" | "settle":
                raise Refused("AWS KMS has no error of its own for unpaid bills")
            case _:
                return False
        return True

    def principal(self, access_key):
        """As error messages name it."""
        return USER if access_key == self.access_key else f"{self.sts.role.replace(':role/', ':assumed-role/')}/session"

    def _expire_sessions(self):
        for secret in self.known.values():
            if secret.token:
                secret.expires = 0

    def keys(self):
        return {key.id: {"state": key.state, "version": key.materials[-1]} for key in (self.kms.key, self.kms.second)}

    def serve(self, request):
        target = request.headers.get("x-amz-target", "")
        try:
            body = json.loads(request.body) if request.body else {}
        except ValueError:
            return failed(Failure("SerializationException"))
        names = ("content-type", "x-amz-target", "accept")
        shown = {name: "…" if name in SECRET_FIELDS else value for name, value in body.items()}
        headers = {name: request.headers.get(name) for name in names}
        operation = target.partition(".")[2]
        entry = self.journal.add(
            service="kms", operation=operation, code="ok", method=request.method, path=request.path, headers=headers, body=shown
        )
        self._tamper(request)
        try:
            access_key = verify(request, self.known, REGION, "kms", self.fronts["kms"].now())
            if headers["content-type"] != JSON or not target.startswith("TrentService."):
                raise Failure("UnknownOperationException", status=404)
            if operation == "Decrypt" and self.fronts["kms"].has("truncate"):
                self.kms.open(truncated(body["CiphertextBlob"]), body)
            answer = self.kms.serve(operation, request, body, self.principal(access_key))
            if operation == "Decrypt" and self.fronts["kms"].take("other-key"):
                answer |= {"KeyId": self.kms.second.arn, "Plaintext": base64.b64encode(secrets.token_bytes(32)).decode()}
            return Answer.of(200, answer, JSON)
        except Failure as failure:
            entry["code"] = failure.code
            return failed(failure)

    def _tamper(self, request):
        match self.tampering:
            case "body":
                request.body = request.body.replace(b"{", b'{"GrantTokens":[],', 1)
            case "target":
                request.headers["x-amz-target"] = "TrentService.ReEncrypt"
            case "date":
                date = request.headers["x-amz-date"]
                request.headers["x-amz-date"] = f"{date[:-3]}{(int(date[-3:-1]) + 1) % 60:02d}Z"
            case "host":
                request.headers["host"] = "kms.us-east-1.amazonaws.com"
            case "signature":
                header = request.headers["authorization"]
                request.headers["authorization"] = header[:-1] + ("0" if header[-1] != "0" else "1")


def failed(failure):
    document = {"__type": failure.code}
    if failure.message:
        document["message"] = failure.message
    return Answer.of(failure.status, document, JSON)


def throttled():
    return Answer.of(400, {"__type": "ThrottlingException", "message": "Rate exceeded"}, JSON)


def start(folder):
    rig = Rig(folder)
    long = f'access_key_id = "{rig.access_key}"\nsecret_access_key = "{rig.secret.secret}"\n'
    shared = f"[default]\naws_access_key_id = {rig.access_key}\naws_secret_access_key = {rig.secret.secret}\n"
    access_key, session = rig.lasting
    short = f'access_key_id = "{access_key}"\nsecret_access_key = "{session.secret}"\nsession_token = "{session.token}"\n'
    return rig, {
        "keys": {"main": rig.kms.key.id, "other": rig.kms.second.id},
        "arns": {"main": rig.kms.key.arn, "other": rig.kms.second.arn},
        "region": REGION,
        "role": rig.sts.role,
        "credentials": {
            "main": secret_file(folder / "credentials.toml", long),
            "shared": secret_file(folder / "credentials", shared),
            "session": secret_file(folder / "session.toml", short),
            "wrong": secret_file(folder / "wrong.toml", long.replace(rig.secret.secret, "wrong" * 8)),
            "web_identity": secret_file(folder / "web-identity-token", rig.sts.web_token),
        },
    }


if __name__ == "__main__":
    main(__doc__, start)
