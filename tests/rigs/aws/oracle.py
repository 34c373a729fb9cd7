"""Who may call: every request's signature, computed again by botocore from what arrived, and refused as AWS refuses it."""

import calendar
import hashlib
import hmac
import re
import time

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

MAX_SKEW = 5 * 60
AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})")


class Failure(Exception):
    """An error as a JSON service of AWS answers it."""

    def __init__(self, code, message="", status=400):
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


class Secret:
    """One access key that the rig knows: its secret, and for a session its token and its end."""

    def __init__(self, secret, token=None, expires=None):
        self.secret, self.token, self.expires = secret, token, expires


def verify(request, secrets, region, service, now):
    """Returns the access key that signed `request`.

    # Raises `Failure` with the code that AWS has for what is wrong.
    """
    header = request.headers.get("authorization")
    if not header:
        raise Failure("MissingAuthenticationTokenException", "Missing Authentication Token")
    matched = AUTHORIZATION.fullmatch(header)
    date = request.headers.get("x-amz-date", "")
    if not matched or not re.fullmatch(r"\d{8}T\d{6}Z", date):
        raise Failure("IncompleteSignatureException", "Authorization header or X-Amz-Date is malformed")
    credential, signed, signature = matched.groups()
    access_key, *scope = credential.split("/")
    secret = secrets.get(access_key)
    if not secret:
        raise Failure("UnrecognizedClientException", "The security token included in the request is invalid.")
    token = request.headers.get("x-amz-security-token")
    if token != secret.token:
        raise Failure("UnrecognizedClientException", "The security token included in the request is invalid")
    if secret.expires is not None and secret.expires <= now:
        raise Failure("ExpiredTokenException", "The security token included in the request is expired")
    if scope != [date[:8], region, service, "aws4_request"]:
        raise Failure("InvalidSignatureException", f"Credential should be scoped to a valid region, not '{scope[1:2]}'.")
    when = calendar.timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))
    if abs(when - now) > MAX_SKEW:
        early = "Signature not yet current" if when > now else "Signature expired"
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        raise Failure("InvalidSignatureException", f"{early}: {date} is too far from {stamp} (5 min.)")
    names = signed.split(";")
    must = {"host", "x-amz-date"} | {name for name in request.headers if name.startswith("x-amz-")}
    if not must <= set(names):
        raise Failure("InvalidSignatureException", f"not signed: {', '.join(sorted(must - set(names)))}")
    digest = hashlib.sha256(request.body).hexdigest()
    if request.headers.get("x-amz-content-sha256", digest) != digest:
        raise Failure("InvalidSignatureException", "The payload hash does not match")
    if not hmac.compare_digest(expected(request, names, access_key, secret, region, service, date), signature):
        message = "The request signature we calculated does not match the signature you provided."
        raise Failure("InvalidSignatureException", message)
    return access_key


def expected(request, names, access_key, secret, region, service, date):
    """The signature that botocore gives this request."""
    headers = {name: request.headers[name] for name in names if name in request.headers}
    url = f"https://{request.headers.get('host', '')}{request.path}"
    again = AWSRequest(method=request.method, url=url, data=request.body, headers=headers)
    again.context["timestamp"] = date
    signer = SigV4Auth(Credentials(access_key, secret.secret), service, region)
    return signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)
