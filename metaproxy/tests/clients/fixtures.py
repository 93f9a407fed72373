"""Creates roles, buckets and the node's credentials in moto, makes moto enforce IAM, and prints the node's keys."""

import json
import sys
import urllib.request

import boto3

endpoint = sys.argv[1]


def client(service):
    return boto3.client(
        service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )


iam, s3, sts = client("iam"), client("s3"), client("sts")


def role(name, action, resources):
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
    }
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": action, "Resource": resources}],
    }
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=json.dumps(policy))


for letter in "ab":
    bucket = f"bucket-{letter}"
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=f"object-{letter}", Body=b"x")
    role(f"role-{letter}", "s3:ListBucket", [f"arn:aws:s3:::{bucket}"])
role("node", "sts:AssumeRole", ["*"])
node = sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/node", RoleSessionName="i-0abc")["Credentials"]
reset = urllib.request.Request(
    f"{endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST"
)
urllib.request.urlopen(reset).read()
print(json.dumps([node["AccessKeyId"], node["SecretAccessKey"], node["SessionToken"]]))
