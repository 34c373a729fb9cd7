#!/usr/bin/env python3
"""AWS KMS, STS and instance metadata on loopback: `scripts/rigs/cloud aws serve DIR`. What it does is in tests/rigs/README.md."""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from cloud.certificates import Authorities  # noqa: E402
from cloud.control import Control, Journal, Refused, announce, live  # noqa: E402
from cloud.front import Answer, Front  # noqa: E402
from kms import JSON, Kms, Moto  # noqa: E402
from oracle import Failure, verify  # noqa: E402
from sts import Metadata, Sts  # noqa: E402

REGION = "eu-central-1"
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

    def act(self, action, order):
        on, kms = bool(order.get("on", True)), self.kms
        match action:
            case "disable-key":
                kms.key.state = "Disabled"
            case "enable-key":
                kms.key.state = "Enabled"
            case "schedule-deletion":
                kms.schedule_deletion(int(order.get("days", 7)))
            case "cancel-deletion":
                # As in AWS: the key comes back disabled.
                kms.key.state = "Disabled"
            case "delete-key":
                kms.key.state = "Deleted"
            case "key-store-away":
                kms.key.state = "Unavailable" if on else "Enabled"
            case "rotate-key":
                kms.key.rotate()
            case "deny":
                kms.denied |= set(order.get("operations", kms.OPERATIONS))
            case "allow":
                kms.denied.clear()
            case "truncate-ciphertext":
                kms.truncating = on
            case "other-key":
                kms.other_key = on
            case "expire-credential":
                # The static key is deleted, sessions end, and no new ones are given out.
                self.known.pop(self.access_key, None)
                for secret in self.known.values():
                    secret.expires = 0
                self.sts.expired = on
                if not on:
                    self.known[self.access_key] = self.secret
            case "expire-tokens":
                for name, secret in self.known.items():
                    if name != self.access_key:
                        secret.expires = 0
            case "token-life":
                self.sts.life = int(order["seconds"])
            case "tamper":
                # Changes what arrives before it is verified, as somebody in between would: body, target, date, host, off.
                self.tampering = order.get("part")
            case "in-debt":
                raise Refused("AWS KMS has no error of its own for unpaid bills")
            case _:
                return False
        return True

    def state(self):
        key = self.kms.key
        return {"key_state": key.state, "key_version": key.materials[-1], "tokens": self.sts.issued}

    def serve(self, request):
        target = request.headers.get("x-amz-target", "")
        try:
            body = json.loads(request.body) if request.body else {}
        except ValueError:
            return failed(Failure("SerializationException"))
        names = ("content-type", "x-amz-target", "accept")
        shown = {name: "…" if name in SECRET_FIELDS else value for name, value in body.items()}
        headers = {name: request.headers.get(name) for name in names}
        self.journal.add(service="kms", method=request.method, path=request.path, headers=headers, body=shown)
        self._tamper(request)
        try:
            principal = verify(request, self.known, REGION, "kms", self.fronts["kms"].now())
            if headers["content-type"] != JSON or not target.startswith("TrentService."):
                raise Failure("UnknownOperationException", status=404)
            return Answer.of(200, self.kms.serve(target.partition(".")[2], request, body, principal), JSON)
        except Failure as failure:
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
            case "secret":
                header = request.headers["authorization"]
                request.headers["authorization"] = header[:-1] + ("0" if header[-1] != "0" else "1")


def failed(failure):
    document = {"__type": failure.code}
    if failure.message:
        document["message"] = failure.message
    return Answer.of(failure.status, document, JSON)


def throttled():
    return Answer.of(400, {"__type": "ThrottlingException", "message": "Rate exceeded"}, JSON)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="holds the CAs, the credentials and rig.json")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rig = Rig(folder)
    files = {
        "credentials": f"[default]\naws_access_key_id = {rig.access_key}\naws_secret_access_key = {rig.secret.secret}\n",
        "web-identity-token": rig.sts.web_token,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    announce(folder, {
        "provider": "aws",
        "endpoint": rig.fronts["kms"].url,
        "sts_endpoint": rig.fronts["sts"].url,
        "imds_endpoint": rig.fronts["imds"].url,
        "control": Control(rig).url,
        "ca_file": str(rig.authorities.current.path),
        "next_ca_file": str(rig.authorities.next.path),
        "stranger_ca_file": str(rig.authorities.stranger.path),
        "region": REGION,
        "key": rig.kms.key.id,
        "key_arn": rig.kms.key.arn,
        "second_key": rig.kms.second.id,
        "role": rig.sts.role,
        "credentials_file": str(folder / "credentials"),
        "web_identity_token_file": str(folder / "web-identity-token"),
    })
    live(arguments.until_eof)


if __name__ == "__main__":
    main()
