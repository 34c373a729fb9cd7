"""The judge of signatures: the vendor's own Python library computes what the request should have been signed with."""

import hashlib
import hmac
import re
import urllib.parse

from alibabacloud_tea_openapi.utils import Utils
from darabonba.request import DaraRequest

ALGORITHM = "ACS3-HMAC-SHA256"
#: What a signature must cover, besides every x-acs- header that is there.
COVERED = {
    "host", "content-type", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version",
}
AUTHORIZATION = re.compile(
    ALGORITHM + r" Credential=([^,\s]+), ?SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})"
)


def named_key(request):
    """The access key ID that the request names, or None."""
    found = AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    return found and found.group(1)


def is_complete(request):
    """Whether the signature covers all it must. The vendor's own client leaves content-type out on an empty body."""
    found = AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    signed = set(found.group(2).split(";"))
    needed = COVERED | {name for name in request.headers if name.startswith("x-acs-")}
    if "content-type" not in request.headers:
        needed.discard("content-type")
    return needed <= signed


def is_right(request, secret):
    """Whether key, request and body belong together."""
    key, signed, signature = AUTHORIZATION.fullmatch(request.headers.get("authorization", "")).groups()
    payload = hashlib.sha256(request.body).hexdigest()
    if request.headers.get("x-acs-content-sha256") != payload:
        return False
    path, _, query = request.path.partition("?")
    judged = DaraRequest()
    judged.method, judged.pathname = request.method, path
    judged.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    judged.headers = {name: request.headers[name] for name in signed.split(";") if name in request.headers}
    expected = Utils.get_authorization(judged, ALGORITHM, payload, key, secret)
    return hmac.compare_digest(AUTHORIZATION.fullmatch(expected).group(3), signature)
