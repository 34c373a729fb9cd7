"""IBM Cloud IAM, as far as a client of Key Protect meets it: API keys, trusted profiles, tokens with a life."""

import base64
import hashlib
import hmac
import json
import secrets
import urllib.parse

from cloud.front import Answer

GRANT = "urn:ibm:params:oauth:grant-type:"


class Iam:
    def __init__(self, journal, account, other_account):
        self.journal = journal
        self.account, self.other_account = account, other_account
        self.api_key = secrets.token_urlsafe(33)
        self.cr_token = secrets.token_urlsafe(48)
        self.profile = f"Profile-{secrets.token_hex(16)}"
        self.secret = secrets.token_bytes(32)
        self.now = None  # set by the rig: the service's clock
        self.issued = self.void_before = 0
        self.reset()

    def reset(self):
        self.life, self.revoked = 3600, False

    def void_tokens(self):
        """Every token given out so far is refused from now on."""
        self.void_before = self.issued

    def __call__(self, request):
        form = dict(urllib.parse.parse_qsl(request.body.decode("ascii", "replace"), keep_blank_values=True))
        shown = {name: "…" if name in ("apikey", "cr_token", "access_token") else value for name, value in form.items()}
        content_type = request.headers.get("content-type", "")
        entry = self.journal.add(
            service="iam", operation=form.get("grant_type", "").removeprefix(GRANT), code="ok", method=request.method,
            path=request.path, form=shown, content_type=content_type, accept=request.headers.get("accept"),
        )
        answer = self._serve(request, form, content_type)
        entry["code"] = "ok" if answer.status == 200 else json.loads(answer.body)["errorCode"]
        return answer

    def _serve(self, request, form, content_type):
        if (request.method, request.path) != ("POST", "/identity/token"):
            return _error(404, "BXNIM0404E", "Not found")
        if content_type.partition(";")[0] != "application/x-www-form-urlencoded":
            return _error(415, "BXNIM0109E", "The Content-Type is not supported")
        match form.get("grant_type", "").removeprefix(GRANT):
            case "apikey":
                if self.revoked or not hmac.compare_digest(form.get("apikey", ""), self.api_key):
                    return _error(400, "BXNIM0415E", "Provided API key could not be found.")
                return self._token(self.account)
            case "cr-token":
                if self.revoked or form.get("cr_token") != self.cr_token or form.get("profile_id") != self.profile:
                    return _error(400, "BXNIM0441E", "The compute resource token could not be validated.")
                return self._token(self.other_account)
            case "assume":
                if self.account_of(form.get("access_token", "")) != self.account:
                    return _error(401, "BXNIM0407E", "The provided access token is invalid or has expired.")
                if form.get("profile_id") != self.profile:
                    return _error(400, "BXNIM0523E", "The trusted profile could not be found.")
                return self._token(self.other_account)
        return _error(400, "BXNIM0109E", "Property missing or empty: grant_type")

    def _token(self, account):
        self.issued += 1
        now = int(self.now())
        claims = {"iat": now, "exp": now + self.life, "account": {"bss": account}, "number": self.issued}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
        token = f"{text}.{_encoded(hmac.digest(self.secret, text.encode(), hashlib.sha256))}"
        return Answer.of(200, {
            "access_token": token,
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": self.life,
            "expiration": claims["exp"],
            "scope": "ibm openid",
        })

    def account_of(self, token):
        """The account a token speaks for; None: refused."""
        text, _, mac = token.rpartition(".")
        if not hmac.compare_digest(_encoded(hmac.digest(self.secret, text.encode(), hashlib.sha256)), mac):
            return None
        claims = json.loads(base64.urlsafe_b64decode(text.partition(".")[2] + "=="))
        if claims["exp"] <= self.now() or claims["number"] <= self.void_before:
            return None
        return claims["account"]["bss"]


def _encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _error(status, code, message):
    return Answer.of(status, {"errorCode": code, "errorMessage": message, "context": {"requestId": secrets.token_hex(8)}})
