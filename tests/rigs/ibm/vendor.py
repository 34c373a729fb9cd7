#!/usr/bin/env python3
"""IBM's own client on the rig: what its requests look like, and whether it opens what another client wrapped.

    vendor.py DIR < ORDERS       ORDERS: a JSON list such as
        [{"do": "wrap", "aad": ["a"]}, {"do": "wrap", "plaintext": "<base64>", "aad": ["a"]},
         {"do": "unwrap", "ciphertext": "<base64>", "aad": ["a"]}, {"do": "rewrap", …}, {"do": "describe"}]

Prints a JSON list: for each order {"status": 200, "result": {…}}, or {"status": 409, "code": "KEY_ACTION_…"}.
"profile" in an order: as that trusted profile, "instance" and "key": another root key.
"""

import io
import json
import os
import pathlib
import sys

import keyprotect
from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import IAMAssumeAuthenticator, IAMAuthenticator


def client(rig, api_key, profile):
    if profile:
        authenticator = IAMAssumeAuthenticator(apikey=api_key, iam_profile_id=profile, url=rig["endpoints"]["iam"])
    else:
        authenticator = IAMAuthenticator(api_key, url=rig["endpoints"]["iam"])
    service = keyprotect.IbmKeyProtectApiV2(authenticator=authenticator)
    service.set_service_url(rig["endpoints"]["kms"])
    return service


def carry_out(service, rig, order):
    key, instance = order.get("key", rig["keys"]["main"]), order.get("instance", rig["instances"]["main"])
    body = io.BytesIO(json.dumps({n: order[n] for n in ("plaintext", "ciphertext", "aad") if n in order}).encode())
    match order["do"]:
        case "wrap":
            return service.wrap_key(key, instance, key_action_wrap_body=body)
        case "unwrap":
            return service.unwrap_key(key, instance, body)
        case "rewrap":
            return service.rewrap_key(key, instance, body)
        case "describe":
            return service.get_key_metadata(key, instance)
    raise ValueError(order["do"])


def reason(error):
    resources = (error.http_response.json() or {}).get("resources", [{}])
    reasons = resources[0].get("reasons", [{}])
    return reasons[0].get("code")


def main():
    rig = json.loads((pathlib.Path(sys.argv[1]) / "rig.json").read_text())
    os.environ["REQUESTS_CA_BUNDLE"] = rig["ca_file"]
    api_key = pathlib.Path(rig["credentials"]["main"]).read_text().split('"')[1]
    results, clients = [], {}
    for order in json.load(sys.stdin):
        profile = order.get("profile")
        service = clients.setdefault(profile, client(rig, api_key, profile))
        try:
            done = carry_out(service, rig, order)
            results.append({"status": done.get_status_code(), "result": done.get_result()})
        except ApiException as error:
            results.append({"status": error.status_code, "code": reason(error)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
