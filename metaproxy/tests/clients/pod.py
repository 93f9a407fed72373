"""Uses boto3 as an application in a pod does, configured with region and endpoint only."""

import json

import boto3
from botocore.exceptions import ClientError, NoCredentialsError


def attempt(call):
    try:
        return call()
    except NoCredentialsError:
        return "no credentials"
    except ClientError as error:
        return error.response["Error"]["Code"]


s3 = boto3.client("s3")
result = {"identity": attempt(lambda: boto3.client("sts").get_caller_identity()["Arn"])}
for bucket in ("bucket-a", "bucket-b"):
    result[bucket] = attempt(lambda: [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]])
print(json.dumps(result))
