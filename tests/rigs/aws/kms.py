"""AWS KMS: moto's, with its own signature check on, and in front of it what moto does not do: key states, permissions,
key material that rotates, and a key ID that must match.
"""

import base64
import hashlib
import io
import json
import os
import uuid

# Before moto is imported: every request must be signed, by a principal whose policy allows it.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"

from botocore.auth import SigV4Auth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402
from moto.iam.models import iam_backends  # noqa: E402
from moto.kms.exceptions import InvalidCiphertextException  # noqa: E402
from moto.kms.models import kms_backends  # noqa: E402
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: E402
from moto.sts.models import sts_backends  # noqa: E402

from cloud.front import Request  # noqa: E402
from oracle import Failure, Secret  # noqa: E402

ACCOUNT = "123456789012"
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}
KEY_ID_LEN = 36
JSON = "application/x-amz-json-1.1"


class Moto:
    """moto's application, called as WSGI: its second check of each signature sees the request as it arrived."""

    def __init__(self, region):
        self.region = region
        self.app = DomainDispatcherApplication(create_backend_app)
        self.kms = kms_backends[ACCOUNT][region]
        self.iam = iam_backends[ACCOUNT]["aws"]
        self.sts = sts_backends[ACCOUNT]["aws"]

    def create_key(self):
        key = self.kms.create_key(None, "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", "keystead", [])
        return key.id, key.arn

    def create_user(self):
        self.iam.create_user("aws", "keystead")
        self.iam.put_user_policy("keystead", "kms", json.dumps(POLICY))
        made = self.iam.create_access_key("keystead", prefix="AKIA")
        return made.access_key_id, Secret(made.secret_access_key)

    def create_role(self):
        role = self.iam.create_role("keystead-role", "{}", "/", None, None, [], "3600")
        self.iam.put_role_policy("keystead-role", "kms", json.dumps(POLICY))
        return role.arn

    def assume(self, role, session, seconds, now):
        """A session of `role`: access key, secret, token, end."""
        made = self.sts.assume_role(self.region, session, role, None, seconds, None)
        return made.access_key_id, Secret(made.secret_access_key, made.session_token, now + seconds)

    def prove_that_it_checks(self, access_key, secret, key_id):
        """Fails unless this moto takes a request that is signed and refuses the same one signed with another secret."""
        for used, wanted in ((secret.secret, 200), ("another" * 6, 403)):
            headers = {"host": "127.0.0.1", "x-amz-target": "TrentService.DescribeKey", "content-type": JSON}
            signed = AWSRequest("POST", "https://127.0.0.1/", headers, json.dumps({"KeyId": key_id}).encode())
            SigV4Auth(Credentials(access_key, used), "kms", self.region).add_auth(signed)
            request = Request("POST", "/", {name.lower(): value for name, value in signed.headers.items()}, signed.data)
            status, answer = self.call(request)
            assert status == wanted, f"moto does not check signatures as expected: {status} {answer}"

    def call(self, request):
        """Status and body as moto answers."""
        environ = {
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "443",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(request.body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https",
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in request.headers.items():
            if name not in ("content-type", "content-length"):
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        status = []
        body = b"".join(self.app(environ, lambda line, headers, exc_info=None: status.append(int(line.split()[0]))))
        return status[0], body


class Key:
    """What the rig adds to one of moto's keys."""

    def __init__(self, key_id, arn):
        self.id, self.arn = key_id, arn
        self.state = "Enabled"
        self.deletion = None
        self.materials = [_material()]

    def rotate(self):
        self.materials.append(_material())

    def need_enabled(self):
        match self.state:
            case "Enabled":
                return
            case "Deleted":
                raise Failure("NotFoundException", f"Key '{self.arn}' does not exist")
            case "Disabled":
                raise Failure("DisabledException", f"{self.arn} is disabled.")
            case "PendingDeletion":
                raise Failure("KMSInvalidStateException", f"{self.arn} is pending deletion.")
            case "Unavailable":
                raise Failure("KMSInvalidStateException", f"{self.arn} is unavailable.")
        raise AssertionError(self.state)


def _material():
    return hashlib.sha256(uuid.uuid4().bytes).hexdigest()


class Kms:
    OPERATIONS = ("Encrypt", "Decrypt", "GenerateDataKey", "DescribeKey")

    def __init__(self, moto):
        self.moto = moto
        self.key, self.second = Key(*moto.create_key()), Key(*moto.create_key())
        self.made_with = {}
        self.reset()

    def reset(self):
        for key in (self.key, self.second):
            key.state, key.deletion = "Enabled", None
            del key.materials[1:]
        self.denied = set()

    def find(self, key_id):
        for key in (self.key, self.second):
            if key_id in (key.id, key.arn):
                return key
        region = self.moto.region
        if key_id.startswith("arn:") and key_id.split(":")[3:4] != [region]:
            raise Failure("NotFoundException", f"Invalid arn {key_id.split(':')[3]}")
        raise Failure("NotFoundException", f"Key '{key_id}' does not exist")

    def serve(self, operation, request, body, principal):
        """The answer as a JSON document."""
        if operation not in self.OPERATIONS:
            raise Failure("UnknownOperationException")
        key = self.find(body.get("KeyId") or self.key.id)
        if operation in self.denied:
            message = f"User: {principal} is not authorized to perform: kms:{operation} on resource: {key.arn}"
            raise Failure("AccessDeniedException", message)
        if operation == "DescribeKey":
            if key.state == "Deleted":
                key.need_enabled()
        else:
            key.need_enabled()
        if operation == "Decrypt":
            self._check_ciphertext(body, key)
        status, answer = self.moto.call(request)
        if status != 200:
            raise self._refused_by_moto(status, answer)
        return self._completed(operation, key, body, json.loads(answer))

    def open(self, blob, body):
        """By moto's own code, past its check of the signature: what arrived is not what was signed."""
        try:
            self.moto.kms.decrypt(base64.b64decode(blob), body.get("EncryptionContext", {}))
        except InvalidCiphertextException:
            raise Failure("InvalidCiphertextException") from None

    def _check_ciphertext(self, body, key):
        blob = base64.b64decode(body.get("CiphertextBlob", ""))
        if not 0 < len(blob) <= 6144:
            raise Failure("InvalidCiphertextException")
        named = blob[:KEY_ID_LEN].decode("ascii", "replace")
        if named not in (self.key.id, self.second.id):
            raise Failure("InvalidCiphertextException")
        if named != key.id:
            message = "The key ID in the request does not identify a CMK that can perform this operation."
            raise Failure("IncorrectKeyException", message)

    @staticmethod
    def _refused_by_moto(status, answer):
        try:
            document = json.loads(answer)
            return Failure(document["__type"].split("#")[-1], document.get("message", ""), status)
        except ValueError:
            # XML: moto's own check of signature and policy, which has the last word on what the oracle let pass.
            return Failure("InvalidSignatureException", f"refused by moto: {answer.decode()}", 400)

    def _completed(self, operation, key, body, answer):
        match operation:
            case "Encrypt" | "GenerateDataKey":
                self.made_with[hashlib.sha256(base64.b64decode(answer["CiphertextBlob"])).digest()] = key.materials[-1]
                if operation == "Encrypt":
                    answer["EncryptionAlgorithm"] = "SYMMETRIC_DEFAULT"
                else:
                    answer["KeyMaterialId"] = key.materials[-1]
            case "Decrypt":
                blob = base64.b64decode(body["CiphertextBlob"])
                answer["EncryptionAlgorithm"] = "SYMMETRIC_DEFAULT"
                answer["KeyMaterialId"] = self.made_with.get(hashlib.sha256(blob).digest(), key.materials[0])
            case "DescribeKey":
                answer["KeyMetadata"] |= {
                    "KeyState": key.state,
                    "Enabled": key.state == "Enabled",
                    "CurrentKeyMaterialId": key.materials[-1],
                }
                answer["KeyMetadata"].pop("DeletionDate", None)
                if key.state == "PendingDeletion":
                    answer["KeyMetadata"]["DeletionDate"] = key.deletion
        return answer
