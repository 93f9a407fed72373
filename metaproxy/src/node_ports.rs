//! Ports of a node that other software is known to want: the agent takes none of them by itself, and `metaproxy doctor` warns
//! if it is told to.
//!
//! Listed are TCP ports that the software binds in the node's own network namespace (hostNetwork, a hostPort or a daemon of the
//! node) unless somebody changes its default. A port in the table is no proof that the software runs on this node.

/// The port that documentation, chart and messages suggest for `--admin-address`: after 169.254, and nobody's in the table, nor in
/// the NodePort range, the ephemeral range, or OpenShift's range for services of a node (9000 to 9999).
pub const SUGGESTED_ADMIN_PORT: u16 = 16_925;

/// A port, and the software that wants it; ascending.
pub const WELL_KNOWN: &[(u16, &str)] = &[
    (22, "sshd"),
    (53, "node-local-dns and other DNS caches of the node"),
    (
        80,
        "ingress controllers (ingress-nginx, Traefik, HAProxy), the EKS Pod Identity agent",
    ),
    (111, "rpcbind"),
    (179, "BGP (Calico, kube-router, MetalLB, Cilium)"),
    (
        443,
        "ingress controllers (ingress-nginx, Traefik, HAProxy), the API server, kiam's server",
    ),
    (1024, "HAProxy's ingress controller"),
    (1042, "HAProxy's ingress controller (health)"),
    (1338, "containerd's metrics"),
    (2020, "Fluent Bit"),
    (2049, "NFS"),
    (2112, "kube-vip and Tetragon (metrics)"),
    (2375, "dockerd"),
    (2376, "dockerd"),
    (2379, "etcd"),
    (2380, "etcd"),
    (2381, "etcd's metrics"),
    (2382, "etcd of k3s and RKE2"),
    (2703, "the EKS Pod Identity agent (probes)"),
    (2705, "the EKS Pod Identity agent (metrics)"),
    (3300, "Ceph's monitors"),
    (3988, "kops-controller"),
    (3994, "kops' etcd-manager"),
    (3995, "kops' etcd-manager"),
    (3996, "kops' etcd-manager"),
    (3997, "kops' etcd-manager"),
    (3999, "kops' protokube"),
    (4001, "etcd of kops"),
    (4002, "etcd of kops"),
    (4194, "cAdvisor"),
    (4240, "Cilium (health)"),
    (4244, "Cilium (Hubble)"),
    (4317, "OpenTelemetry collectors"),
    (4318, "OpenTelemetry collectors"),
    (5000, "the Datadog agent"),
    (5001, "the Datadog agent"),
    (5012, "the Datadog agent"),
    (5473, "Calico's Typha"),
    (5555, "the Datadog agent (health)"),
    (6060, "pprof of many daemons, HAProxy's ingress controller"),
    (6062, "the Datadog agent (process agent)"),
    (6162, "the Datadog agent (process agent)"),
    (6443, "the API server"),
    (6444, "k3s' and RKE2's client-side load balancer"),
    (6781, "Weave Net (metrics)"),
    (6782, "Weave Net (metrics)"),
    (6783, "Weave Net"),
    (6784, "Weave Net"),
    (6789, "Ceph's monitors"),
    (7472, "MetalLB (metrics)"),
    (7473, "MetalLB (metrics of FRR)"),
    (7946, "MetalLB (memberlist)"),
    (8000, "Traefik, Neuron monitor"),
    (
        8080,
        "cAdvisor, kube-router, node-local-dns (health), and most programs' first choice",
    ),
    (8126, "the Datadog agent (traces)"),
    (8131, "konnectivity"),
    (8132, "konnectivity"),
    (8133, "konnectivity"),
    (8134, "konnectivity"),
    (8162, "the EKS network policy agent (metrics)"),
    (8163, "the EKS network policy agent (health)"),
    (8181, "kube2iam, kiam's agent, ingress-nginx"),
    (8300, "Consul"),
    (8301, "Consul"),
    (8302, "Consul"),
    (8443, "ingress-nginx (webhook), Traefik, and many webhooks"),
    (8500, "Consul"),
    (8501, "Consul"),
    (8502, "Consul"),
    (8600, "Consul"),
    (8686, "Vector"),
    (8765, "Falco"),
    (8797, "OpenShift's machine-config-daemon"),
    (8888, "OpenTelemetry collectors (metrics)"),
    (9001, "OpenShift's machine-config-daemon, Portworx"),
    (9080, "cephcsi and promtail"),
    (9081, "cephcsi"),
    (9090, "Prometheus, and metrics of many daemons"),
    (9091, "Calico's Felix (metrics)"),
    (9092, "aws-node-termination-handler (metrics)"),
    (9093, "Calico's Typha (metrics)"),
    (9098, "Calico's Typha (health)"),
    (
        9099,
        "Calico's Felix (health), OpenShift's cluster-version-operator",
    ),
    (9100, "node exporter"),
    (9101, "OpenShift (SDN, OVN-Kubernetes)"),
    (9102, "OpenShift (SDN, OVN-Kubernetes)"),
    (9103, "OpenShift (SDN, OVN-Kubernetes)"),
    (9105, "OpenShift (SDN, OVN-Kubernetes)"),
    (9107, "OpenShift (SDN, OVN-Kubernetes)"),
    (9108, "OpenShift (SDN, OVN-Kubernetes)"),
    (9182, "windows_exporter"),
    (9234, "Cilium's operator"),
    (9253, "node-local-dns (metrics)"),
    (9256, "process-exporter"),
    (9283, "Ceph's manager (metrics)"),
    (9323, "dockerd's metrics"),
    (9345, "RKE2 (supervisor)"),
    (9353, "node-local-dns (metrics)"),
    (9400, "NVIDIA's DCGM exporter"),
    (9537, "CRI-O (metrics)"),
    (9543, "kube2iam (metrics, by its chart)"),
    (9620, "kiam (metrics)"),
    (9637, "OpenShift (metrics of CRI-O)"),
    (9796, "node exporter of Rancher's monitoring"),
    (
        9808,
        "the CSI livenessprobe sidecar's default (EBS and many other drivers)",
    ),
    (9809, "the EFS CSI driver (liveness)"),
    (9810, "the FSx CSI driver (liveness)"),
    (9878, "Cilium's Envoy (health)"),
    (9879, "Cilium (health)"),
    (9890, "Cilium (gops)"),
    (9891, "Cilium's operator (gops)"),
    (9901, "Envoy (admin)"),
    (9909, "JuiceFS' CSI driver (liveness)"),
    (9962, "Cilium (metrics)"),
    (9963, "Cilium's operator (metrics)"),
    (9964, "Cilium's Envoy (metrics)"),
    (9965, "Cilium (metrics of Hubble)"),
    (10010, "containerd (streaming)"),
    (10248, "the kubelet (health)"),
    (10249, "kube-proxy (metrics)"),
    (10250, "the kubelet"),
    (10251, "the scheduler (older)"),
    (10252, "the controller manager (older)"),
    (10253, "cloud controller managers (older)"),
    (10254, "ingress-nginx (metrics)"),
    (10255, "the kubelet (read-only)"),
    (10256, "kube-proxy (health)"),
    (10257, "the controller manager"),
    (10258, "cloud controller managers"),
    (10259, "the scheduler"),
    (10260, "cloud controller managers (webhook)"),
    (10349, "Antrea's controller"),
    (10350, "Antrea's agent"),
    (10351, "Antrea (cluster)"),
    (12345, "Grafana Alloy and its agent"),
    (13133, "OpenTelemetry collectors (health)"),
    (20244, "kube-router (health)"),
    (20256, "node-problem-detector"),
    (20257, "node-problem-detector (metrics)"),
    (24231, "Fluentd (metrics)"),
    (25888, "the CloudWatch agent"),
    (29602, "the Azure disk CSI driver (liveness)"),
    (29612, "the Azure file CSI driver (liveness)"),
    (29642, "the SMB CSI driver (liveness)"),
    (29643, "the SMB CSI driver (liveness)"),
    (29652, "the NFS CSI driver (liveness)"),
    (29653, "the NFS CSI driver (liveness)"),
    (50051, "the VPC CNI (ipamd), kube-router (GoBGP)"),
    (50052, "the EKS network policy agent"),
    (54321, "Tetragon"),
    (55679, "OpenTelemetry collectors (zpages)"),
    (61678, "the VPC CNI (metrics)"),
    (61679, "the VPC CNI (introspection)"),
    (61680, "the EKS network policy agent"),
];

/// Who is known to want a port; nobody for most.
pub fn wanted_by(port: u16) -> Option<&'static str> {
    let found = WELL_KNOWN.binary_search_by_key(&port, |(port, _)| *port);
    found.ok().map(|index| WELL_KNOWN[index].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    #[test]
    fn each_port_is_listed_once_in_order() {
        assert!(WELL_KNOWN.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(
            wanted_by(9808),
            Some("the CSI livenessprobe sidecar's default (EBS and many other drivers)")
        );
        assert_eq!(wanted_by(9807), None);
    }

    /// Each `ADDRESS:PORT` that people are told to give, wherever they are told.
    #[rstest::rstest]
    #[case::readme(include_str!("../../README.md"))]
    #[case::deploying(include_str!("../../deploy/README.md"))]
    #[case::migration(include_str!("../../deploy/migration.md"))]
    #[case::values(include_str!("../../deploy/helm/metaproxy/values.yaml"))]
    #[case::chart(include_str!("../../deploy/helm/metaproxy/templates/_helpers.tpl"))]
    #[case::migrate(include_str!("migrate/kube2iam.rs"))]
    #[case::flag(include_str!("cli/values.rs"))]
    fn a_port_that_is_suggested_for_metrics_is_nobody_elses(#[case] text: &str) {
        let address = Regex::new(r"(?:127\.0\.0\.1|0\.0\.0\.0|\[::\]):(\d+)").unwrap();
        let mut suggested = 0;
        for found in address.captures_iter(text) {
            let port: u16 = found[1].parse().unwrap();
            assert_eq!(port, SUGGESTED_ADMIN_PORT, "{}", &found[0]);
            suggested += 1;
        }
        assert!(suggested > 0, "it suggests one");
        assert_eq!(wanted_by(SUGGESTED_ADMIN_PORT), None);
        let openshift = 9_000..=9_999;
        assert!(SUGGESTED_ADMIN_PORT < 30_000 && !openshift.contains(&SUGGESTED_ADMIN_PORT));
    }
}
