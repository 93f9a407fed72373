"""Gets credentials with boto3 again and again, and compares their expiry with that of the metadata service.

Prints a line for each attempt: the role's name, and the seconds for which boto3 uses the credentials beyond the
expiry that the metadata service states. Prints `none` if an attempt fails. Ends when its standard input ends.
"""

import json
import sys
import threading
import time
import urllib.request
from datetime import datetime, timezone

import boto3

BASE = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()


def served():
    role = urllib.request.urlopen(BASE, timeout=2).read().decode()
    document = json.load(urllib.request.urlopen(BASE + role, timeout=2))
    expiration = datetime.strptime(document["Expiration"], "%Y-%m-%dT%H:%M:%SZ")
    return role, document["AccessKeyId"], expiration.replace(tzinfo=timezone.utc)


while not ended.is_set():
    try:
        credentials = boto3.Session().get_credentials()
        frozen = credentials.get_frozen_credentials()
        role, key, expiration = served()
        # If the keys differ, the credentials were renewed in between, and the attempt is skipped.
        if frozen.access_key == key:
            belief = (credentials._expiry_time - expiration).total_seconds()
            print(role, belief, flush=True)
    except Exception:
        print("none", flush=True)
    time.sleep(0.05)
