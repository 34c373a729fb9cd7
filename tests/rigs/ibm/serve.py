#!/usr/bin/env python3
"""IBM Key Protect and IAM on loopback: `scripts/rigs/cloud ibm --state DIR`. What it does is in tests/rigs/README.md."""

import json
import pathlib
import re
import sys
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from cloud.certificates import Authorities  # noqa: E402
from cloud.control import Journal, Refused, main, secret_file  # noqa: E402
from cloud.front import Answer, Front, truncated  # noqa: E402
from iam import Iam  # noqa: E402
from keys import ACTIVE, DESTROYED, SUSPENDED, Failure, RootKey  # noqa: E402

OPERATIONS = ("wrap", "unwrap", "rewrap")
ACTION_TYPE = "application/vnd.ibm.kms.key_action{}+json"
REGION = "us-south"


class Rig:
    def __init__(self, folder):
        authorities = Authorities(folder)
        self.authorities = authorities
        self.journal = Journal()
        account, other_account = uuid.uuid4().hex, uuid.uuid4().hex
        instance, other_instance = str(uuid.uuid4()), str(uuid.uuid4())
        self.key = RootKey(instance, account)
        self.second = RootKey(instance, account)
        self.foreign = RootKey(other_instance, other_account)
        self.all = {key.id: key for key in (self.key, self.second, self.foreign)}
        self.iam = Iam(self.journal, account, other_account)
        self.reset()
        self.fronts = {
            "kms": Front("kms", self.serve, throttled, authorities),
            "iam": Front("iam", self.iam, throttled, authorities),
        }
        self.iam.now = self.fronts["iam"].now

    def reset(self):
        for key in self.all.values():
            key.reset()
        self.denied = set()
        self.iam.reset()

    def act(self, action, order):
        key = self.all[order.get("key", self.key.id)]
        match action:
            case "disable-key":
                key.state = SUSPENDED
            case "enable-key" | "cancel-deletion":
                key.state, key.purged = ACTIVE, False
            case "schedule-deletion":
                # There is no waiting period before: a deleted key can be restored for 30 days.
                key.state = DESTROYED
            case "delete-key":
                key.state, key.purged = DESTROYED, bool(order.get("purge", False))
            case "rotate-key":
                key.rotate()
            case "deny":
                self.denied |= set(order.get("operations", [*OPERATIONS, "metadata"]))
            case "allow":
                self.denied.clear()
            case "revoke-credential":
                # The API key is deleted; what it was exchanged for is refused as well.
                self.iam.revoked = True
                self.iam.void_tokens()
            case "restore-credential":
                self.iam.revoked = False
            case "expire-tokens":
                self.iam.void_tokens()
            case "token-life":
                self.iam.life = int(order["seconds"])
            case "debt" | "settle":
                raise Refused("Key Protect has no error of its own for unpaid bills")
            case _:
                return False
        return True

    def keys(self):
        return {key.id: {"state": key.state, "version": key.newest} for key in self.all.values()}

    def serve(self, request):
        token = request.headers.get("authorization", "")
        try:
            body = json.loads(request.body) if request.body else {}
        except ValueError:
            return failed(Failure(400, "BAD_BODY_ERR", "Bad Request", "Invalid body data was passed."))
        headers = {name: request.headers.get(name) for name in ("accept", "content-type", "bluemix-instance")}
        shown = {name: value if name == "aad" else "…" for name, value in body.items()}
        entry = self.journal.add(
            service="kms", operation=request.path.rpartition("/")[2], code="ok", method=request.method, path=request.path,
            headers=headers, body=shown, authorization=token.partition(" ")[0],
        )
        try:
            return self._serve(request, token, body, headers)
        except Failure as failure:
            entry["code"] = failure.code
            return failed(failure)

    def _serve(self, request, token, body, headers):
        account = self.iam.account_of(token.removeprefix("Bearer "))
        if not token.startswith("Bearer ") or token.count(".") != 2:
            raise Failure(400, "BEARER_SUB_EXTRACTION_ERR", "Bad Request", "Extracting the subject failed")
        matched = re.fullmatch(r"/api/v2/keys/([0-9a-f-]{36})/(?:actions/(\w+)|(metadata))", request.path)
        if not matched:
            return failed(Failure(404, "NOT_FOUND_ERR", "Not Found", "There is no such path"))
        operation = matched[2] or matched[3]
        key = self.all.get(matched[1])
        if account is None:
            raise unauthorized(401, "Unauthorized", bare=True)
        known = {each.instance: each.account for each in self.all.values()}
        if operation in self.denied or known.get(headers["bluemix-instance"]) != account:
            raise unauthorized(403, "Forbidden")
        if not key or key.instance != headers["bluemix-instance"]:
            raise Failure(404, "KEY_NOT_FOUND_ERR", "Not Found", "Key does not exist")
        if request.method == "GET" and operation == "metadata":
            return Answer.of(200, key.metadata())
        if request.method != "POST" or operation not in OPERATIONS:
            raise Failure(405, "METHOD_NOT_ALLOWED_ERR", "Method Not Allowed", "No such action")
        if headers["content-type"] not in (ACTION_TYPE.format(""), ACTION_TYPE.format(f"_{operation}")):
            raise Failure(415, "UNSUPPORTED_MEDIA_TYPE_ERR", "Unsupported Media Type", "Wrong content type")
        if operation == "unwrap" and self.fronts["kms"].take("other-key"):
            # An answer names no key: that another one was used shows in what it cannot open.
            key = self.second
        if operation == "unwrap" and self.fronts["kms"].has("truncate"):
            body = {**body, "ciphertext": truncated(body["ciphertext"])}
        answer = getattr(key, operation)(body)
        return Answer.of(200, answer)


def unauthorized(status, what, bare=False):
    failure = Failure(status, "UNAUTHORIZED_ERR", what, "The user does not have access to the specified resource")
    # The vendor documents the 401 without reasons.
    failure.bare = bare
    return failure


def errors(text, *reasons):
    kind = {"collectionType": "application/vnd.ibm.kms.error+json", "collectionTotal": 1}
    return {"metadata": kind, "resources": [{"errorMsg": text, **({"reasons": list(reasons)} if reasons else {})}]}


def failed(failure):
    if failure.bare:
        return Answer.of(failure.status, errors(f"Unauthorized: {failure.message}"))
    more = "https://cloud.ibm.com/apidocs/key-protect"
    reason = {"code": failure.code, "message": failure.message, "status": failure.status, "moreInfo": more}
    return Answer.of(failure.status, errors(failure.text, reason))


def throttled():
    text = "Too Many Requests: The rate limit of the instance is exceeded"
    return Answer.of(429, errors(text), Retry_After=1)


def start(folder):
    rig = Rig(folder)
    return rig, {
        "keys": {"main": rig.key.id, "other": rig.second.id, "foreign": rig.foreign.id},
        "instances": {"main": rig.key.instance, "foreign": rig.foreign.instance},
        "region": REGION,
        "profile": rig.iam.profile,
        "credentials": {
            "main": secret_file(folder / "credentials.toml", f'api_key = "{rig.iam.api_key}"\n'),
            "console": secret_file(folder / "apikey.json", json.dumps({"name": "keystead", "apikey": rig.iam.api_key})),
            "foreign": secret_file(
                folder / "foreign.toml", f'api_key = "{rig.iam.api_key}"\ntrusted_profile = "{rig.iam.profile}"\n'
            ),
            "wrong": secret_file(folder / "wrong.toml", 'api_key = "no-such-key"\n'),
            "cr_token": secret_file(folder / "cr-token", rig.iam.cr_token),
        },
    }


if __name__ == "__main__":
    main(__doc__, start)
