"""Holds the stub against the vendor's own client: what that sends must be served, and what was changed must be refused.

python tests/rigs/alibaba/check.py DIR     (the folder of a running rig)
"""

import base64
import hashlib
import json
import pathlib
import secrets
import sys
import time
import urllib.parse

import requests
import tomllib
from alibabacloud_tea_openapi.client import Client
from alibabacloud_tea_openapi.exceptions import ClientException
from alibabacloud_tea_openapi.utils import Utils
from alibabacloud_tea_openapi.utils_models import Config, OpenApiRequest, Params
from darabonba.request import DaraRequest
from darabonba.runtime import RuntimeOptions

folder = pathlib.Path(sys.argv[1])
rig = json.loads((folder / "rig.json").read_text())
credential = tomllib.loads((folder / "main.toml").read_text())


def client(secret=credential["access_key_secret"]):
    endpoint = urllib.parse.urlsplit(rig["endpoints"]["kms"]).netloc
    return Client(Config(access_key_id=credential["access_key_id"], access_key_secret=secret, endpoint=endpoint, protocol="https"))


def call(action, query, using=None):
    params = Params(
        action=action, version="2016-01-20", protocol="HTTPS", pathname="/", method="POST", auth_type="AK", style="RPC",
        req_body_type="formData", body_type="json",
    )
    runtime = RuntimeOptions(ca=rig["ca_file"], autoretry=False)
    return (using or client()).call_api(params, OpenApiRequest(query=query), runtime)["body"]


def refused_with(action, query, code, using=None):
    try:
        call(action, query, using)
    except ClientException as error:
        assert error.code == code, (action, error.code)
    else:
        raise AssertionError(f"{action} was served")


key, context = rig["keys"]["main"], json.dumps({"keyring": "edge", "generation": "1"})
made = call("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context})
opened = call("Decrypt", {"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context})
assert (opened["Plaintext"], opened["KeyId"]) == (made["Plaintext"], key)
sealed = call("Encrypt", {"KeyId": key, "Plaintext": base64.b64encode(b"x" * 32).decode(), "EncryptionContext": context})
opened = call("Decrypt", {"CiphertextBlob": sealed["CiphertextBlob"], "EncryptionContext": context})
assert base64.b64decode(opened["Plaintext"]) == b"x" * 32
assert call("DescribeKey", {"KeyId": key})["KeyMetadata"]["KeyState"] == "Enabled"
refused_with("Decrypt", {"CiphertextBlob": made["CiphertextBlob"]}, "InvalidParameter")
refused_with("DescribeKey", {"KeyId": "key-none"}, "Forbidden.KeyNotFound")
refused_with("DescribeKey", {"KeyId": key}, "SignatureDoesNotMatch", client("wrong"))


def signed():
    """Headers and body of a request that is right, signed by the vendor's library."""
    body = urllib.parse.urlencode({"KeyId": key})
    headers = {
        "host": urllib.parse.urlsplit(rig["endpoints"]["kms"]).netloc,
        "content-type": "application/x-www-form-urlencoded",
        "x-acs-action": "DescribeKey",
        "x-acs-version": "2016-01-20",
        "x-acs-date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "x-acs-signature-nonce": secrets.token_hex(16),
        "x-acs-content-sha256": hashlib.sha256(body.encode()).hexdigest(),
    }
    request = DaraRequest()
    request.method, request.pathname, request.query, request.headers = "POST", "/", {}, headers
    given = headers["x-acs-content-sha256"], credential["access_key_id"], credential["access_key_secret"]
    return {**headers, "authorization": Utils.get_authorization(request, "ACS3-HMAC-SHA256", *given)}, body


def sent(headers, body, path="/"):
    answer = requests.post(rig["endpoints"]["kms"] + path, data=body, headers=headers, verify=rig["ca_file"], timeout=30)
    return answer.json().get("Code", "ok")


headers, body = signed()
assert sent(headers, body) == "ok"
assert sent(headers, body) == "SignatureNonceUsed"
tampered = {
    "x-acs-action": "Decrypt",
    "x-acs-version": "2016-01-21",
    "x-acs-signature-nonce": "0" * 32,
    "content-type": "application/json",
    "authorization": signed()[0]["authorization"],
}
for name, value in tampered.items():
    headers, body = signed()
    code = sent({**headers, name: value}, body)
    assert code == ("InvalidVersion" if name == "x-acs-version" else "SignatureDoesNotMatch"), (name, code)
headers, body = signed()
assert sent(headers, body + "&PageSize=1") == "SignatureDoesNotMatch"
other = body.replace(key, rig["keys"]["other"])
assert sent({**headers, "x-acs-content-sha256": hashlib.sha256(other.encode()).hexdigest()}, other) == "SignatureDoesNotMatch"
assert sent(headers, body, "/?KeyId=" + rig["keys"]["other"]) == "SignatureDoesNotMatch"
unsigned = headers["authorization"].replace("content-type;", "")
assert sent({**headers, "authorization": unsigned}, body) == "IncompleteSignature"
print("the vendor's client and the stub agree")
