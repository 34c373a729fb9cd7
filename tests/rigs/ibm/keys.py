"""Root keys of a Key Protect instance: versions, states, wrap and unwrap with additional data enforced."""

import base64
import binascii
import json
import secrets
import time
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ACTIVE, SUSPENDED, DESTROYED = 1, 2, 5
MAX_AAD_ITEMS, MAX_AAD_LEN = 126, 255


class Failure(Exception):
    """An error as Key Protect answers it."""

    def __init__(self, status, code, what, message, operation="Action could not be performed on key"):
        super().__init__(code)
        self.status, self.code, self.bare = status, code, False
        self.text = f"{what}: {operation}: Please see `reasons` for more details ({code})"
        self.message = message


def invalid_state(operation):
    return Failure(409, "KEY_ACTION_INVALID_STATE_ERR", "Conflict", "Key is not in a valid state", operation)


def unprocessable(operation):
    return Failure(
        422, "UNPROCESSABLE_CIPHERTEXT_ERR", "Unprocessable Entity", "The provided ciphertext is invalid or corrupted", operation
    )


def field_error(field, problem, operation):
    return Failure(400, "INVALID_FIELD_ERR", "Bad Request", f"The field `{field}` must be: {problem}", operation)


class RootKey:
    def __init__(self, instance, account):
        self.id, self.instance, self.account = str(uuid.uuid4()), instance, account
        self.created = time.time()
        self.versions = {}
        self.rotate()
        self.first = self.newest
        self.reset()

    def reset(self):
        self.state, self.purged, self.newest = ACTIVE, False, self.first

    def rotate(self):
        self.newest = str(uuid.uuid4())
        self.versions[self.newest] = secrets.token_bytes(32)

    def need(self, operation, states=(ACTIVE,)):
        if self.purged:
            raise Failure(404, "KEY_NOT_FOUND_ERR", "Not Found", "Key does not exist", operation)
        if self.state == DESTROYED and DESTROYED not in states:
            message = "Key has already been deleted. Please delete references to this key."
            raise Failure(410, "KEY_DELETED_ERR", "Gone", message, operation)
        if self.state not in states:
            raise invalid_state(operation)

    def seal(self, plaintext, aad):
        nonce = secrets.token_bytes(12)
        sealed = AESGCM(self.versions[self.newest]).encrypt(nonce, plaintext, _bound(aad))
        blob = {
            "ciphertext": base64.b64encode(sealed).decode(),
            "iv": base64.b64encode(nonce).decode(),
            "version": "4.0.0",
            "handle": self.newest,
        }
        return base64.b64encode(json.dumps(blob, separators=(",", ":")).encode()).decode()

    def open(self, ciphertext, aad, operation):
        """Returns plaintext and the version that sealed it."""
        try:
            raw = base64.b64decode(ciphertext, validate=True)
        except (binascii.Error, ValueError) as error:
            raise field_error("ciphertext", f"the original base64 encoded ciphertext: {error}", operation) from None
        try:
            blob = json.loads(raw)
            version = blob["handle"]
            sealed, nonce = (base64.b64decode(blob[name], validate=True) for name in ("ciphertext", "iv"))
            return AESGCM(self.versions[version]).decrypt(nonce, sealed, _bound(aad)), version
        except (ValueError, KeyError, TypeError, InvalidTag):
            raise unprocessable(operation) from None

    def wrap(self, body):
        operation = "Wrap with key could not be performed"
        self.need(operation)
        aad = _aad(body, operation)
        given = body.get("plaintext")
        try:
            plaintext = base64.b64decode(given, validate=True) if given else secrets.token_bytes(32)
        except (binascii.Error, ValueError) as error:
            raise field_error("plaintext", f"a base64 encoded key material: {error}", operation) from None
        answer = {"ciphertext": self.seal(plaintext, aad), "keyVersion": {"id": self.newest}}
        return answer if given else {"plaintext": base64.b64encode(plaintext).decode(), **answer}

    def unwrap(self, body):
        operation = "Unwrap with key could not be performed"
        self.need(operation)
        aad = _aad(body, operation)
        plaintext, version = self.open(body.get("ciphertext") or "", aad, operation)
        answer = {"plaintext": base64.b64encode(plaintext).decode(), "keyVersion": {"id": version}}
        if version != self.newest:
            answer |= {"ciphertext": self.seal(plaintext, aad), "rewrappedKeyVersion": {"id": self.newest}}
        return answer

    def rewrap(self, body):
        operation = "Rewrap with key could not be performed"
        self.need(operation)
        aad = _aad(body, operation)
        plaintext, version = self.open(body.get("ciphertext") or "", aad, operation)
        return {
            "ciphertext": self.seal(plaintext, aad),
            "keyVersion": {"id": version},
            "rewrappedKeyVersion": {"id": self.newest},
        }

    def metadata(self):
        self.need("Key could not be retrieved", (ACTIVE, SUSPENDED, DESTROYED))
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))
        resource = {
            "type": "application/vnd.ibm.kms.key+json",
            "id": self.id,
            "name": "keystead",
            "state": self.state,
            "extractable": False,
            "imported": False,
            "creationDate": created,
            "keyVersion": {"id": self.newest, "creationDate": created},
            "keyRingID": "default",
            "deleted": self.state == DESTROYED,
        }
        if self.state == DESTROYED:
            resource["deletionDate"] = time.strftime("%Y-%m-%dT%H:%M:%SZ")
        kind = {"collectionType": "application/vnd.ibm.kms.key+json", "collectionTotal": 1}
        return {"metadata": kind, "resources": [resource]}


def _aad(body, operation):
    unknown = set(body) - {"plaintext", "ciphertext", "aad"}
    if unknown:
        message = f'Invalid body data was passed. json: unknown field "{sorted(unknown)[0]}"'
        raise Failure(400, "BAD_BODY_ERR", "Bad Request", message, operation)
    aad = body.get("aad", [])
    if not isinstance(aad, list) or len(aad) > MAX_AAD_ITEMS or any(len(item) > MAX_AAD_LEN for item in aad):
        raise field_error("aad", "a list of at most 126 strings of at most 255 characters", operation)
    return aad


def _bound(aad):
    return json.dumps(aad).encode()
