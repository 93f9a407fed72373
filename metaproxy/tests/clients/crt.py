"""Gets credentials with the AWS Common Runtime, which has its own metadata client.

Mountpoint for S3 and s3torchconnector use it. Prints the access key ID, or the name of the error.
"""

import json

from awscrt.auth import AwsCredentialsProvider
from awscrt.exceptions import AwsCrtError
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

group = EventLoopGroup(1)
provider = AwsCredentialsProvider.new_default_chain(ClientBootstrap(group, DefaultHostResolver(group)))
try:
    result = provider.get_credentials().result(20).access_key_id
except AwsCrtError as error:
    result = error.name
print(json.dumps(result))
