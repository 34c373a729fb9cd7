"""AWS STS and the instance metadata service (IMDSv2): where short-lived credentials come from."""

import secrets
import time
import urllib.parse
from xml.sax.saxutils import escape

from cloud.front import Answer


class Sts:
    """AssumeRoleWithWebIdentity, which needs no signature: the web token is the proof."""

    def __init__(self, journal, moto, role, known):
        self.journal, self.moto, self.role, self.known = journal, moto, role, known
        self.web_token = secrets.token_urlsafe(60)
        self.now = None  # set by the rig: the service's clock
        self.reset()

    def reset(self):
        self.life, self.revoked = 3600, False

    def session(self, name):
        access_key, secret = self.moto.assume(self.role, name, self.life, self.now())
        self.known[access_key] = secret
        return access_key, secret

    def __call__(self, request):
        form = dict(urllib.parse.parse_qsl(request.body.decode("ascii", "replace"), keep_blank_values=True))
        shown = form | ({"WebIdentityToken": "…"} if "WebIdentityToken" in form else {})
        entry = self.journal.add(
            service="sts", operation=form.get("Action"), code="ok", method=request.method, path=request.path, form=shown
        )
        answer = self._serve(form)
        if answer.status != 200:
            entry["code"] = answer.body.decode().partition("<Code>")[2].partition("</Code>")[0]
        return answer

    def _serve(self, form):
        if form.get("Action") != "AssumeRoleWithWebIdentity" or form.get("Version") != "2011-06-15":
            return _error("InvalidAction", f"Could not find operation {form.get('Action')}")
        if self.revoked:
            return _error("ExpiredTokenException", "Token expired: current date/time must be before the expiration")
        if form.get("WebIdentityToken") != self.web_token:
            return _error("InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider")
        if form.get("RoleArn") != self.role or not form.get("RoleSessionName"):
            return _error("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", 403)
        access_key, secret = self.session(form["RoleSessionName"])
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(secret.expires))
        credentials = "".join(
            f"<{name}>{escape(value)}</{name}>"
            for name, value in (
                ("AccessKeyId", access_key),
                ("SecretAccessKey", secret.secret),
                ("SessionToken", secret.token),
                ("Expiration", end),
            )
        )
        body = (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<AssumeRoleWithWebIdentityResult><Credentials>{credentials}</Credentials>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )
        return Answer(200, body.encode(), "text/xml")


def _error(code, message, status=400):
    body = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{escape(message)}</Message></Error></ErrorResponse>"
    )
    return Answer(status, body.encode(), "text/xml")


class Metadata:
    """IMDSv2 only: a token by PUT, then the role's name and its credentials."""

    ROLES = "/latest/meta-data/iam/security-credentials/"

    def __init__(self, journal, sts):
        self.journal, self.sts, self.token = journal, sts, secrets.token_urlsafe(40)

    def __call__(self, request):
        entry = self.journal.add(service="imds", operation=request.path, code="ok", method=request.method, path=request.path)
        answer = self._serve(request)
        if answer.status != 200:
            entry["code"] = str(answer.status)
        return answer

    def _serve(self, request):
        if (request.method, request.path) == ("PUT", "/latest/api/token"):
            if not request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                return Answer(400, b"", "text/plain")
            return Answer(200, self.token.encode(), "text/plain")
        if request.headers.get("x-aws-ec2-metadata-token") != self.token:
            return Answer(401, b"", "text/plain")
        if request.path == self.ROLES:
            return Answer(200, b"keystead-role", "text/plain")
        if request.path != self.ROLES + "keystead-role":
            return Answer(404, b"", "text/plain")
        if self.sts.revoked:
            return Answer.of(200, {"Code": "Failed", "Message": "the role is gone"}, "text/plain")
        access_key, secret = self.sts.session("i-0123456789abcdef0")
        form = "%Y-%m-%dT%H:%M:%SZ"
        return Answer.of(200, {
            "Code": "Success",
            "LastUpdated": time.strftime(form, time.gmtime(self.sts.now())),
            "Type": "AWS-HMAC",
            "AccessKeyId": access_key,
            "SecretAccessKey": secret.secret,
            "Token": secret.token,
            "Expiration": time.strftime(form, time.gmtime(secret.expires)),
        }, "text/plain")
