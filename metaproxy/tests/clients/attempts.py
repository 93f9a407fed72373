"""Calls GetCallerIdentity several times with boto3, each time with a new session, as a new process would.

Prints a JSON list of ARNs, with null for each failure. Usage: attempts.py TIMES
"""

import json
import sys

import boto3
from botocore.exceptions import ClientError, NoCredentialsError

outcomes = []
for _ in range(int(sys.argv[1])):
    try:
        outcomes.append(boto3.Session().client("sts").get_caller_identity()["Arn"])
    except (NoCredentialsError, ClientError):
        outcomes.append(None)
print(json.dumps(outcomes))
