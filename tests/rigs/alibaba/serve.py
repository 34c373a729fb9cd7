#!/usr/bin/env python3
"""Alibaba Cloud on loopback: KMS on the shared gateway and on a dedicated instance, STS, ECS metadata.

`scripts/rigs/cloud alibaba --state DIR`. What it does is in tests/rigs/README.md.
"""

import json
import pathlib
import secrets
import sys
import time
import types
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

import oracle  # noqa: E402
from cloud.certificates import Authorities  # noqa: E402
from cloud.control import Journal, main, secret_file  # noqa: E402
from cloud.front import Answer, Front, truncated  # noqa: E402
from kms import Keys, Refused, date  # noqa: E402

REGION = "cn-hangzhou"
ROLE = "acs:ram::100000000000:role/keystead"
PROVIDER = "acs:ram::100000000000:oidc-provider/cluster"
#: What the vendor allows between its clock and a request's.
TOLERANCE = 15 * 60
MANAGEMENT = {"DescribeKey", "ListKeyVersions"}
SECRET = {"Plaintext", "CiphertextBlob", "OIDCToken"}


class Rig:
    def __init__(self, folder):
        self.authorities, self.journal, self.kms_keys = Authorities(folder), Journal(), Keys()
        self.access_keys = {"LTAI" + secrets.token_hex(8): secrets.token_hex(15)}
        self.main = next(iter(self.access_keys))
        self.oidc_token = f"eyJ{secrets.token_hex(40)}.e30.{secrets.token_hex(20)}"
        # A dedicated instance's certificate is of a private CA, as the vendor's are.
        private = types.SimpleNamespace(**vars(self.authorities))
        private.current, private.next = private.next, private.current
        self.fronts = {
            "kms": Front("kms", self.kms, self.throttled, self.authorities),
            "instance": Front("instance", self.instance, self.throttled, private),
            "sts": Front("sts", self.sts, self.throttled, self.authorities),
            "metadata": Front("metadata", self.metadata, self.throttled, None),
        }
        self.session_seconds, self.sessions = 3600, {}
        # In a file, and so it outlives a reset.
        self.lasting = self.new_session()
        self.reset()

    def reset(self):
        self.kms_keys.reset()
        self.revoked, self.nonces, self.metadata_tokens = set(), set(), set()
        self.session_seconds, self.role_trusted = 3600, True
        secret, token = self.lasting["AccessKeySecret"], self.lasting["SecurityToken"]
        lasting = {"secret": secret, "token": token, "expires": time.time() + 3600}
        self.sessions = {self.lasting["AccessKeyId"]: lasting}

    def now(self):
        """All of the vendor's services are on one time; skew without a service's name sets them all."""
        return self.fronts["kms"].now()

    # Signatures and credentials.

    def authenticate(self, request):
        """Refuses as the vendor does what is not signed by a known key for now, once."""
        key = oracle.named_key(request)
        if key is None:
            raise Refused(400, "MissingAccessKeyId", "AccessKeyId is mandatory for this action.")
        self.check_time(request)
        secret = self.secret_of(key, request)
        if not oracle.is_complete(request):
            raise Refused(400, "IncompleteSignature", "The request signature does not conform to standards.")
        if not oracle.is_right(request, secret):
            raise Refused(400, "SignatureDoesNotMatch", "Specified signature does not match our calculation.")
        nonce = request.headers["x-acs-signature-nonce"]
        if nonce in self.nonces:
            raise Refused(400, "SignatureNonceUsed", "Specified signature nonce was used already.")
        self.nonces.add(nonce)

    def check_time(self, request):
        try:
            said = time.strptime(request.headers.get("x-acs-date", ""), "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            raise Refused(400, "IllegalTimestamp", "The input parameter \"Timestamp\" is not valid.") from None
        if abs(time.mktime(said) - time.timezone - self.now()) > TOLERANCE:
            raise Refused(400, "IllegalTimestamp", "The input parameter \"Timestamp\" is expired.")

    def secret_of(self, key, request):
        token = request.headers.get("x-acs-security-token")
        if key in self.access_keys and key not in self.revoked and token is None:
            return self.access_keys[key]
        session = self.sessions.get(key)
        if session is None:
            raise Refused(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        if token != session["token"]:
            raise Refused(400, "InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatches.")
        if session["expires"] <= self.now():
            raise Refused(400, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
        return session["secret"]

    def new_session(self):
        key, expires = "STS." + secrets.token_hex(12), self.now() + self.session_seconds
        session = {"secret": secrets.token_hex(20), "token": secrets.token_urlsafe(180) + "+/=", "expires": expires}
        self.sessions[key] = session
        return {
            "AccessKeyId": key, "AccessKeySecret": session["secret"], "SecurityToken": session["token"],
            "Expiration": date(expires),
        }

    # Services.

    def kms(self, request, front="kms"):
        def perform(action, given):
            self.authenticate(request)
            if front == "instance" and action in MANAGEMENT:
                raise Refused(400, "UnsupportedOperation", "This action is not supported.")
            if action == "Decrypt" and self.fronts[front].has("truncate"):
                given = {**given, "CiphertextBlob": truncated(given["CiphertextBlob"])}
            return self.kms_keys.perform(action, given, self.fronts[front].take("other-key"))

        return self.rpc(request, front, "2016-01-20", perform)

    def instance(self, request):
        return self.kms(request, "instance")

    def sts(self, request):
        def perform(action, given):
            if action == "AssumeRole":
                self.authenticate(request)
            elif action != "AssumeRoleWithOIDC":
                raise Refused(404, "InvalidAction.NotFound")
            elif given.get("OIDCToken") != self.oidc_token or given.get("OIDCProviderArn") != PROVIDER:
                raise Refused(400, "AuthenticationFail.OIDCToken.Invalid", "The OIDC token is not valid.")
            if given.get("RoleArn") != ROLE:
                raise Refused(404, "EntityNotExist.Role", "The role does not exist.")
            if not self.role_trusted:
                raise Refused(403, "NoPermission", "You are not authorized to do this action.")
            if not 2 <= len(given.get("RoleSessionName", "")) <= 64:
                raise Refused(400, "InvalidParameter.RoleSessionName", "The session name is not valid.")
            return {"Credentials": self.new_session(), "AssumedRoleUser": {"Arn": ROLE}}

        return self.rpc(request, "sts", "2015-04-01", perform)

    def rpc(self, request, front, version, perform):
        action, number = request.headers.get("x-acs-action", "?"), secrets.token_hex(16).upper()
        entry = self.journal.add(service=front, operation=action, code="ok")
        path, _, query = request.path.partition("?")
        in_url, in_body = fields(query), fields(request.body.decode())
        try:
            if request.headers.get("x-acs-version") != version or path != "/":
                raise Refused(404, "InvalidVersion", "Specified parameter Version is not valid.")
            if SECRET & in_url.keys() and "AlibabaCloud" not in request.headers.get("user-agent", ""):
                raise Refused(400, "Rig.SecretInUrl", "A URL is no place for this, though the vendor's own client does it.")
            return Answer.of(200, {**perform(action, {**in_url, **in_body}), "RequestId": number})
        except Refused as refused:
            entry["code"] = refused.code
            document = {"RequestId": number, "HostId": front, "Code": refused.code, "Message": str(refused)}
            return Answer.of(refused.status, document)

    @staticmethod
    def throttled():
        document = {"RequestId": secrets.token_hex(16), "Code": "Throttling.User", "Message": "Request was denied."}
        return Answer.of(400, document)

    def metadata(self, request):
        """Version 2 alone: without a token there is nothing to be had."""
        entry = self.journal.add(service="metadata", operation=request.path, code="ok")
        folder = "/latest/meta-data/ram/security-credentials/"
        if request.method == "PUT" and request.path == "/latest/api/token":
            if request.headers.get("x-aliyun-ecs-metadata-token-ttl-seconds", "").isdigit():
                token = secrets.token_urlsafe(40)
                self.metadata_tokens.add(token)
                return Answer(200, token.encode(), "text/plain")
            status = 400
        elif request.headers.get("x-aliyun-ecs-metadata-token") not in self.metadata_tokens:
            status = 403
        elif request.path == folder and self.role_trusted:
            return Answer(200, b"KeysteadRole", "text/plain")
        elif request.path == folder + "KeysteadRole" and self.role_trusted:
            return Answer.of(200, {**self.new_session(), "LastUpdated": date(self.now()), "Code": "Success"})
        else:
            status = 404
        entry["code"] = str(status)
        return Answer(status, b"", "text/plain")

    # Control.

    def keys(self):
        return {
            name: {"id": key.id, "state": key.state, "versions": [version for version, _, _ in key.versions]}
            for name, key in self.kms_keys.named.items()
        }

    def act(self, action, order):
        keys = self.kms_keys
        key = keys.chosen(order)
        match action:
            case "disable-key":
                key.state = "Disabled"
            case "enable-key" | "cancel-deletion":
                key.state, key.deletion = "Enabled", None
            case "schedule-deletion":
                key.state, key.deletion = "PendingDeletion", time.time() + 86400 * order.get("days", 7)
            case "delete-key":
                key.state = "Deleted"
            case "rotate-key":
                key.rotate()
            case "deny":
                keys.denied |= set(order.get("operations", ["*"]))
            case "allow":
                keys.denied.clear()
            case "debt" | "settle":
                keys.debt = action == "debt"
            case "revoke-credential":
                self.revoked.add(self.main)
            case "restore-credential":
                self.revoked.clear()
            case "expire-tokens" if order.get("forgotten"):
                # The vendor's other answer to an old session: it does not know the access key.
                self.sessions.clear()
            case "expire-tokens":
                for session in self.sessions.values():
                    session["expires"] = 0
            case "token-life":
                self.session_seconds = int(order["seconds"])
            case "distrust-role" | "trust-role":
                self.role_trusted = action == "trust-role"
            case "hide-version":
                keys.hides_version = True
            case _:
                return False
        return True

    def credentials(self, folder):
        """Every way to say who one is. `main` is the plain access key."""
        access_key = {"access_key_id": self.main, "access_key_secret": self.access_keys[self.main]}
        session = self.lasting
        profile = {"name": "edge", "mode": "AK", "region_id": REGION, "output_format": "json", **access_key}
        forms = {
            "main": access_key,
            "role": {**access_key, "role_arn": ROLE, "role_session_name": "edge-7"},
            "session": {
                "access_key_id": session["AccessKeyId"],
                "access_key_secret": session["AccessKeySecret"],
                "security_token": session["SecurityToken"],
            },
            "wrong": {**access_key, "access_key_secret": "not" + access_key["access_key_secret"]},
            "unknown": {**access_key, "access_key_id": "LTAI0000000000000000"},
        }
        files = {
            name: secret_file(folder / f"{name}.toml", "".join(f"{key} = {json.dumps(form[key])}\n" for key in form))
            for name, form in forms.items()
        }
        files["cli"] = secret_file(folder / "config.json", json.dumps({"current": "edge", "profiles": [profile]}))
        files["oidc-token"] = secret_file(folder / "oidc-token", self.oidc_token)
        return files


def fields(text):
    return dict(urllib.parse.parse_qsl(text, keep_blank_values=True))


def start(folder):
    rig = Rig(folder)
    return rig, {
        "keys": {name: key.id for name, key in rig.kms_keys.named.items()},
        "region": REGION,
        "credentials": rig.credentials(folder),
        "role_arn": ROLE,
        "oidc_provider_arn": PROVIDER,
    }


if __name__ == "__main__":
    main(__doc__, start)
