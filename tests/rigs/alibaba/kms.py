"""Keys and what can be done with them: KMS 2016-01-20 with the vendor's states, errors and statuses."""

import base64
import json
import os
import secrets
import time
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Refused(Exception):
    """The vendor's error: HTTP status and code."""

    def __init__(self, status, code, message="The request was refused."):
        super().__init__(message)
        self.status, self.code = status, code


def date(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Key:
    def __init__(self, protection):
        self.id = f"key-hzz{secrets.token_hex(10)}"
        self.protection = protection
        self.state, self.deletion = "Enabled", None
        self.versions = []
        self.rotate()

    def rotate(self):
        self.versions.append((str(uuid.uuid4()), AESGCM(os.urandom(32)), time.time()))

    def description(self):
        return {
            "KeyId": self.id,
            "Arn": f"acs:kms:cn-hangzhou:100000000000:key/{self.id}",
            "KeyState": self.state,
            "KeySpec": "Aliyun_AES_256",
            "KeyUsage": "ENCRYPT/DECRYPT",
            "ProtectionLevel": self.protection,
            "Origin": "Aliyun_KMS",
            "PrimaryKeyVersion": self.versions[-1][0],
            "AutomaticRotation": "Enabled",
            "RotationInterval": "31536000s",
            "DeleteDate": date(self.deletion) if self.deletion else "",
            "CreationDate": date(self.versions[0][2]),
        }


class Keys:
    def __init__(self):
        self.reset()

    def reset(self):
        """New material under the IDs there are: a configuration goes on naming the same key."""
        before = getattr(self, "named", {})
        self.named = {"main": Key("SOFTWARE"), "hsm": Key("HSM"), "other": Key("SOFTWARE")}
        for name, key in before.items():
            self.named[name].id = key.id
        self.denied, self.debt = set(), False
        self.hides_version = False

    def chosen(self, order):
        wanted = order.get("key", "main")
        for name, key in self.named.items():
            if wanted in (name, key.id):
                return key
        raise ValueError(f"no key {wanted}")

    def found(self, name):
        bare = (name or "").rpartition("/")[2] if (name or "").startswith("acs:kms:") else name
        for key in self.named.values():
            if key.id == bare and key.state != "Deleted":
                return key
        raise Refused(404, "Forbidden.KeyNotFound", "The specified Key is not found.")

    def usable(self, name):
        key = self.found(name)
        if key.state == "Disabled":
            raise Refused(409, "Rejected.Disabled", "The request was rejected because the key state is Disabled.")
        if key.state == "PendingDeletion":
            raise Refused(409, "Rejected.PendingDeletion", "The request was rejected because the key is pending deletion.")
        return key

    def perform(self, action, given, other_key):
        operations = {
            "GenerateDataKey": self.generate, "Encrypt": self.encrypt, "Decrypt": self.decrypt, "DescribeKey": self.describe,
            "ListKeyVersions": self.list_versions,
        }
        if action not in operations:
            raise Refused(404, "InvalidAction.NotFound")
        if self.debt:
            raise Refused(403, "Forbidden.InDebt", "The account is in debt.")
        if action in self.denied or "*" in self.denied:
            raise Refused(403, "Forbidden.NoPermission", "You are not authorized to perform the operation.")
        answer = operations[action](given)
        if other_key:
            self.as_of_another_key(answer)
        return answer

    def as_of_another_key(self, answer):
        for part in (answer, answer.get("KeyMetadata", {})):
            if "KeyId" in part:
                part["KeyId"] = self.named["other"].id

    def generate(self, given):
        if given.get("KeySpec") != "AES_256" and given.get("NumberOfBytes") != "32":
            raise Refused(400, "InvalidParameter", "The specified parameter KeySpec is not valid.")
        plaintext = os.urandom(32)
        sealed = self.seal(self.usable(given.get("KeyId")), plaintext, given)
        return {**sealed, "Plaintext": base64.b64encode(plaintext).decode()}

    def encrypt(self, given):
        try:
            plaintext = base64.b64decode(given["Plaintext"], validate=True)
        except (KeyError, ValueError):
            raise Refused(400, "InvalidParameter", "The specified parameter Plaintext is not valid.") from None
        return self.seal(self.usable(given.get("KeyId")), plaintext, given)

    def seal(self, key, plaintext, given):
        version, cipher, _ = key.versions[-1]
        nonce = os.urandom(12)
        blob = json.dumps([key.id, version]).encode() + b"\0" + nonce + cipher.encrypt(nonce, plaintext, context(given))
        return {"KeyId": key.id, "KeyVersionId": version, "CiphertextBlob": base64.b64encode(blob).decode()}

    def decrypt(self, given):
        invalid = Refused(400, "InvalidParameter", "The specified parameter CiphertextBlob is not valid.")
        try:
            header, _, sealed = base64.b64decode(given["CiphertextBlob"], validate=True).partition(b"\0")
            key_id, version = json.loads(header)
        except (KeyError, ValueError, TypeError):
            raise invalid from None
        key = self.usable(key_id)
        for known, cipher, _ in key.versions:
            if known == version:
                try:
                    plaintext = cipher.decrypt(sealed[:12], sealed[12:], context(given))
                except (InvalidTag, ValueError):
                    raise invalid from None
                return {"KeyId": key.id, "KeyVersionId": version, "Plaintext": base64.b64encode(plaintext).decode()}
        raise invalid

    def describe(self, given):
        description = self.found(given.get("KeyId")).description()
        if self.hides_version:
            del description["PrimaryKeyVersion"]
        return {"KeyMetadata": description}

    def list_versions(self, given):
        key = self.found(given.get("KeyId"))
        # Not in their order: the client must go by the dates.
        versions = [
            {"KeyId": key.id, "KeyVersionId": version, "CreationDate": date(made + index)}
            for index, (version, _, made) in enumerate(key.versions)
        ]
        return {"KeyVersions": {"KeyVersion": versions[::-1]}, "TotalCount": len(versions), "PageNumber": 1, "PageSize": 100}


def context(given):
    """The encryption context as additional data: a flat map, whatever the order of its fields."""
    text = given.get("EncryptionContext", "{}")
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    flat = isinstance(fields, dict) and all(isinstance(value, str) for value in fields.values())
    if not flat or len(text) > 8192:
        raise Refused(400, "InvalidParameter", "The specified parameter EncryptionContext is not valid.")
    return json.dumps(fields, sort_keys=True).encode()
