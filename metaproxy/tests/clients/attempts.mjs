// Calls GetCallerIdentity several times with the SDK for JavaScript, each time with a new client, as a new process
// would. Prints a JSON list of ARNs, with null for each failure.
//
// Usage: node attempts.mjs SDK TIMES. SDK is the directory of the package @aws-sdk/client-sts.
import { createRequire } from "node:module";

const [sdk, times] = process.argv.slice(2);
const { GetCallerIdentityCommand, STSClient } = createRequire(import.meta.url)(sdk);

const outcomes = [];
for (let attempt = 0; attempt < Number(times); attempt++) {
  const client = new STSClient({});
  try {
    outcomes.push((await client.send(new GetCallerIdentityCommand({}))).Arn);
  } catch (error) {
    outcomes.push(null);
  }
  client.destroy();
}
console.log(JSON.stringify(outcomes));
