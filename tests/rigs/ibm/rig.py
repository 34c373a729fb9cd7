#!/usr/bin/env python3
"""IBM Key Protect and IAM on loopback: `scripts/rigs/cloud ibm serve DIR`. What it does is in tests/rigs/README.md."""

import argparse
import json
import pathlib
import re
import sys
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from cloud.certificates import Authorities  # noqa: E402
from cloud.control import Control, Journal, Refused, announce, live  # noqa: E402
from cloud.front import Answer, Front  # noqa: E402
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
        self.keys = {key.id: key for key in (self.key, self.second, self.foreign)}
        self.iam = Iam(self.journal, account, other_account)
        self.reset()
        self.fronts = {
            "kms": Front("kms", self.serve, throttled, authorities),
            "iam": Front("iam", self.iam, throttled, authorities),
        }
        self.iam.now = self.fronts["iam"].now

    def reset(self):
        for key in self.keys.values():
            key.state, key.purged = ACTIVE, False
        self.denied, self.truncating, self.other_key, self.refuse_unread = set(), False, False, False
        self.iam.reset()

    def act(self, action, order):
        on = bool(order.get("on", True))
        match action:
            case "disable-key":
                self.key.state = SUSPENDED
            case "enable-key":
                self.key.state, self.key.purged = ACTIVE, False
            case "schedule-deletion":
                # Key Protect has no waiting period before: a deleted key can be restored for 30 days.
                self.key.state = DESTROYED
            case "cancel-deletion":
                self.key.state = ACTIVE
            case "delete-key":
                self.key.state, self.key.purged = DESTROYED, bool(order.get("purge", False))
            case "rotate-key":
                self.key.rotate()
            case "deny":
                self.denied |= set(order.get("operations", [*OPERATIONS, "metadata"]))
            case "allow":
                self.denied.clear()
            case "truncate-ciphertext":
                self.truncating = on
            case "other-key":
                self.other_key = on
            case "expire-credential":
                # The API key is deleted; what it was exchanged for is refused as well.
                self.iam.expired = on
                self.iam.void_tokens()
            case "expire-tokens":
                self.iam.void_tokens()
            case "token-life":
                self.iam.life = int(order["seconds"])
            case "in-debt":
                raise Refused("Key Protect has no error of its own for unpaid bills")
            case _:
                return False
        return True

    def state(self):
        return {"key_state": self.key.state, "key_version": self.key.newest, "tokens": self.iam.issued}

    def serve(self, request):
        token = request.headers.get("authorization", "")
        try:
            body = json.loads(request.body) if request.body else {}
        except ValueError:
            return failed(Failure(400, "BAD_BODY_ERR", "Bad Request", "Invalid body data was passed."))
        headers = {name: request.headers.get(name) for name in ("accept", "content-type", "bluemix-instance")}
        shown = {name: value if name == "aad" else "…" for name, value in body.items()}
        self.journal.add(
            service="kms", method=request.method, path=request.path, headers=headers, body=shown,
            authorization=token.partition(" ")[0],
        )
        try:
            return self._serve(request, token, body, headers)
        except Failure as failure:
            return failed(failure)

    def _serve(self, request, token, body, headers):
        account = self.iam.account_of(token.removeprefix("Bearer "))
        if not token.startswith("Bearer ") or token.count(".") != 2:
            return failed(Failure(400, "BEARER_SUB_EXTRACTION_ERR", "Bad Request", "Extracting the subject failed"))
        matched = re.fullmatch(r"/api/v2/keys/([0-9a-f-]{36})/(?:actions/(\w+)|(metadata))", request.path)
        if not matched:
            return failed(Failure(404, "NOT_FOUND_ERR", "Not Found", "There is no such path"))
        operation = matched[2] or matched[3]
        key = self.keys.get(matched[1])
        if account is None:
            # Without reasons: as the vendor documents it.
            return Answer.of(401, errors("Unauthorized: The user does not have access to the specified resource"))
        known = {each.instance: each.account for each in self.keys.values()}
        if operation in self.denied or known.get(headers["bluemix-instance"]) != account:
            raise unauthorized()
        if not key or key.instance != headers["bluemix-instance"]:
            raise Failure(404, "KEY_NOT_FOUND_ERR", "Not Found", "Key does not exist")
        if request.method == "GET" and operation == "metadata":
            return Answer.of(200, key.metadata())
        if request.method != "POST" or operation not in OPERATIONS:
            raise Failure(405, "METHOD_NOT_ALLOWED_ERR", "Method Not Allowed", "No such action")
        if headers["content-type"] not in (ACTION_TYPE.format(""), ACTION_TYPE.format(f"_{operation}")):
            raise Failure(415, "UNSUPPORTED_MEDIA_TYPE_ERR", "Unsupported Media Type", "Wrong content type")
        if self.truncating and "ciphertext" in body:
            body["ciphertext"] = body["ciphertext"][: len(body["ciphertext"]) // 8 * 4]
        answer = getattr(key, operation)(body)
        if self.other_key and operation == "unwrap":
            # Somebody else's answer: another version of another key, and not this plaintext.
            answer = self.second.unwrap({"ciphertext": self.second.wrap({})["ciphertext"]})
        return Answer.of(200, answer)


def unauthorized():
    return Failure(403, "UNAUTHORIZED_ERR", "Forbidden", "The user does not have access to the specified resource")


def errors(text, *reasons):
    kind = {"collectionType": "application/vnd.ibm.kms.error+json", "collectionTotal": 1}
    return {"metadata": kind, "resources": [{"errorMsg": text, **({"reasons": list(reasons)} if reasons else {})}]}


def failed(failure):
    more = "https://cloud.ibm.com/apidocs/key-protect"
    reason = {"code": failure.code, "message": failure.message, "status": failure.status, "moreInfo": more}
    return Answer.of(failure.status, errors(failure.text, reason))


def throttled():
    text = "Too Many Requests: The rate limit of the instance is exceeded"
    return Answer.of(429, errors(text), Retry_After=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="holds the CAs, the credentials and rig.json")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rig = Rig(folder)
    (folder / "credentials.toml").write_text(f'api_key = "{rig.iam.api_key}"\n')
    (folder / "credentials.toml").chmod(0o600)
    (folder / "cr-token").write_text(rig.iam.cr_token)
    (folder / "cr-token").chmod(0o600)
    announce(folder, {
        "provider": "ibm",
        "endpoint": rig.fronts["kms"].url,
        "iam_endpoint": rig.fronts["iam"].url,
        "control": Control(rig).url,
        "ca_file": str(rig.authorities.current.path),
        "next_ca_file": str(rig.authorities.next.path),
        "stranger_ca_file": str(rig.authorities.stranger.path),
        "region": REGION,
        "instance": rig.key.instance,
        "key": rig.key.id,
        "second_key": rig.second.id,
        "foreign_instance": rig.foreign.instance,
        "foreign_key": rig.foreign.id,
        "profile": rig.iam.profile,
        "credentials_file": str(folder / "credentials.toml"),
        "cr_token_file": str(folder / "cr-token"),
    })
    live(arguments.until_eof)


if __name__ == "__main__":
    main()
