"""Checks manifests against the schemas of Kubernetes: a JSON list of {"version", "name", "text"} on standard input."""

import json
import sys

import kubernetes_validate
import yaml
from kubernetes_validate.utils import SchemaNotFoundError

# No schema of Kubernetes' own.
FOREIGN = {("monitoring.coreos.com/v1", "PodMonitor"), ("monitoring.coreos.com/v1", "PrometheusRule")}


class Strict(yaml.SafeLoader):
    """YAML takes the last of two equal keys; here that is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise ValueError(f"a key twice at {node.start_mark}")
        return super().construct_mapping(node, deep)


checked = 0
for case in json.load(sys.stdin):
    for document in filter(None, yaml.load_all(case["text"], Strict)):
        kind = document["apiVersion"], document["kind"]
        if kind in FOREIGN:
            continue
        try:
            used = kubernetes_validate.validate(document, case["version"], strict=True)
        except (kubernetes_validate.ValidationError, SchemaNotFoundError) as error:
            sys.exit(f"{case['name']} with {case['version']}: {kind}: {error}")
        if used != case["version"]:
            sys.exit(f"{case['version']}: another version's schema was used ({used})")
        checked += 1
print(checked)
