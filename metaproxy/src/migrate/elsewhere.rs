//! Recognizes input without a workload, and names the command that gives the right input.

use serde_json::Value;

use super::manifest::{Workload, maker};
use crate::cli::SourceSoftware;

/// Says what to give instead of the objects.
pub fn hint(from: SourceSoftware, objects: &[&Value]) -> String {
    let of = from.name();
    let other = match from {
        SourceSoftware::Kube2iam => SourceSoftware::Kiam,
        SourceSoftware::Kiam => SourceSoftware::Kube2iam,
    };
    let is_others = |object: &&Value| Workload::of(object, other.name()).is_ok_and(|found| found.is_some());
    if objects.iter().any(is_others) {
        return format!("it is of {0}: `metaproxy migrate {0}`", other.name());
    }
    objects
        .iter()
        .find_map(|object| of_object(of, object))
        .unwrap_or_else(|| {
            format!(
                "no pod template in it has a container with that image, name or command. Give the output of `kubectl -n kube-system \
                 get daemonset {of} -o yaml`, or the flags after --"
            )
        })
}

fn of_object(of: &str, object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or("NAME");
    let namespace = metadata["namespace"].as_str().unwrap_or("NAMESPACE");
    let piped = format!("| metaproxy migrate {of}");
    let of_release = |kind: &str, release: &str, namespace: &str| {
        format!(
            "a {kind} has values of a chart, and not the rendered manifests: `helm get manifest {release} --namespace {namespace} \
             {piped}`"
        )
    };
    let text = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
    let spec = &object["spec"];
    let is_its = || Workload::of(object, of).is_ok_and(|found| found.is_some());
    if let Some((kind, namespace, name)) = maker(object).filter(|_| is_its()) {
        return Some(format!(
            "it was made by {kind} {name}, with what Kubernetes adds: `kubectl -n {namespace} get {} {name} -o yaml {piped}`",
            kind.to_lowercase()
        ));
    }
    match object["kind"].as_str() {
        Some("HelmRelease") => {
            let target = text(&spec["targetNamespace"], namespace);
            let release = text(&spec["releaseName"], name);
            Some(of_release("HelmRelease", &release, &target))
        }
        Some("HelmChart") => Some(of_release(
            "HelmChart",
            name,
            &text(&spec["targetNamespace"], namespace),
        )),
        Some(kind @ ("Application" | "ApplicationSet")) => Some(format!(
            "an {kind} of Argo CD names a chart or a directory, and not the rendered manifests: `argocd app manifests {name} {piped}`"
        )),
        Some("Kustomization") => Some(format!(
            "a Kustomization names manifests: `kubectl kustomize DIRECTORY {piped}`"
        )),
        Some(kind @ ("ConfigMap" | "Secret")) => Some(of_data(of, kind, name, namespace, object)),
        Some(_) => None,
        None if object.is_object() => Some(format!(
            "an object without `kind` is no manifest, but may be the values of a Helm chart: `helm template RELEASE CHART --values \
             FILE {piped}`, or `helm get manifest RELEASE {piped}` of what is installed"
        )),
        None => None,
    }
}

/// Names the command that reads a manifest from the text of a ConfigMap.
fn of_data(of: &str, kind: &str, name: &str, namespace: &str, object: &Value) -> String {
    let data = object["data"].as_object();
    let has_it = |value: &Value| value.as_str().is_some_and(|text| text.contains(of));
    let key = data.and_then(|data| data.iter().find(|(_, value)| has_it(value)));
    let key = key.map_or("KEY", |(key, _)| key.as_str()).replace('.', "\\.");
    let decoded = if kind == "Secret" {
        " | base64 --decode"
    } else {
        ""
    };
    format!(
        "a {kind} holds text: `kubectl -n {namespace} get {} {name} -o jsonpath='{{.data.{key}}}'{decoded} | metaproxy migrate \
         {of}` if that text is a manifest",
        kind.to_lowercase()
    )
}

/// Says what to do about a text that is not YAML because it is a Helm template.
pub fn template(text: &str) -> Option<&'static str> {
    text.contains("{{")
        .then_some("it looks like a template of a Helm chart: `helm template RELEASE CHART` renders it")
}

#[cfg(test)]
mod tests {
    use super::super::workloads;
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::values(
        "extraArgs: { default-role: d }\nhost: { iptables: true }\n",
        "helm template RELEASE CHART --values FILE | metaproxy migrate kube2iam"
    )]
    #[case::flux(
        "kind: HelmRelease\nmetadata: { name: kube2iam, namespace: flux }\nspec: { targetNamespace: kube-system, releaseName: k }\n",
        "helm get manifest k --namespace kube-system | metaproxy migrate kube2iam"
    )]
    #[case::k3s(
        "kind: HelmChart\nmetadata: { name: kube2iam, namespace: kube-system }\nspec: { chart: kube2iam }\n",
        "helm get manifest kube2iam --namespace kube-system"
    )]
    #[case::argo_cd("kind: Application\nmetadata: { name: iam }\n", "argocd app manifests iam")]
    #[case::kustomize(
        "kind: Kustomization\nresources: [kube2iam.yaml]\n",
        "kubectl kustomize DIRECTORY"
    )]
    #[case::config_map(
        "kind: ConfigMap\nmetadata: { name: addons, namespace: a }\ndata: { kube2iam.yaml: 'kind: DaemonSet, kube2iam' }\n",
        "kubectl -n a get configmap addons -o jsonpath='{.data.kube2iam\\.yaml}' | metaproxy migrate kube2iam"
    )]
    #[case::chart_template(
        "kind: DaemonSet\nspec:\n  {{- if .Values.x }}\n",
        "it looks like a template of a Helm chart: `helm template"
    )]
    #[case::of_the_other(
        "kind: DaemonSet\nspec: { template: { spec: { containers: [{ image: 'uswitch/kiam:v4.2' }] } } }\n",
        "it is of kiam: `metaproxy migrate kiam`"
    )]
    #[case::another(
        "kind: DaemonSet\nmetadata: { name: other }\n",
        "kubectl -n kube-system get daemonset kube2iam -o yaml"
    )]
    #[case::one_pod_of_it(
        "kind: Pod\nmetadata: { name: kube2iam-x2, namespace: s, ownerReferences: [{ kind: DaemonSet, name: kube2iam }] }\nspec: { \
         containers: [{ image: kube2iam }] }\n",
        "kubectl -n s get daemonset kube2iam -o yaml"
    )]
    fn input_without_a_workload_is_recognized_and_the_right_command_is_named(
        #[case] text: &str,
        #[case] command: &str,
    ) {
        let error = workloads(SourceSoftware::Kube2iam, "x.yaml", text)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("x.yaml:") && error.contains(command), "{error}");
    }

    #[rstest]
    #[case::static_pod(
        "kind: Pod\nmetadata: { name: kube2iam }\nspec: { containers: [{ image: 'kube2iam:0.11.2', args: [--verbose] }] }"
    )]
    #[case::of_another_kind(
        "kind: AdvancedDaemonSet\nmetadata: { name: x }\nspec: { template: { spec: { containers: [{ name: kube2iam, args: [--verbose] }] } } }"
    )]
    #[case::with_its_pods(
        "kind: Pod\nmetadata: { name: x, ownerReferences: [{ kind: DaemonSet, name: kube2iam }] }\nspec: { containers: [{ image: \
         kube2iam, args: [--debug] }] }\n---\nkind: DaemonSet\nspec: { template: { spec: { containers: [{ image: kube2iam, args: \
         [--verbose] }] } } }"
    )]
    #[case::a_copy_of_a_static_pod(
        "kind: Pod\nmetadata: { name: x, ownerReferences: [{ kind: Node, name: n }] }\nspec: { containers: [{ image: kube2iam, args: \
         [--verbose] }] }"
    )]
    fn a_static_pod_and_any_kind_with_a_template_are_read(#[case] text: &str) {
        let found = workloads(SourceSoftware::Kube2iam, "x.yaml", text).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].words, ["--verbose"]);
    }
}
