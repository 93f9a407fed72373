//! Lists the ports of a node that other software uses by default. The agent never chooses one of them itself, and
//! `metaproxy doctor` warns if a flag names one.
//!
//! The table contains the TCP ports that the software binds in the node's own network namespace (hostNetwork, a
//! hostPort or a daemon of the node) by default. A port in the table is no proof that the software runs on this node.

/// The port that documentation, chart and messages suggest for `--admin-address`. The number alludes to 169.254. It
/// is not in the table, and not in the NodePort range, the ephemeral range, or OpenShift's range for services of a
/// node (9000 to 9999).
pub const SUGGESTED_ADMIN_PORT: u16 = 16_925;

/// The ports in ascending order, each with the software that uses it and where that is set (a flag, a key or a document
/// of that software).
// Each row is one line, so that the rows can be read as a table.
#[rustfmt::skip]
pub const WELL_KNOWN: &[(u16, &str, &str)] = &[
    (22, "sshd", "sshd_config, Port"),
    (53, "node-local-dns and other DNS caches of the node", "node-local-dns, Corefile"),
    (80, "ingress controllers (ingress-nginx, Traefik, HAProxy), the EKS Pod Identity agent", "ingress-nginx --http-port; EKS Pod Identity agent, server on 169.254.170.23"),
    (111, "rpcbind", "rpcbind.socket"),
    (179, "BGP (Calico, kube-router, MetalLB, Cilium)", "kube-router --bgp-port; Calico, BGPConfiguration listenPort"),
    (443, "ingress controllers (ingress-nginx, Traefik, HAProxy), the API server, kiam's server", "ingress-nginx --https-port; kops, port of the API server; kiam server --bind"),
    (1024, "HAProxy's ingress controller", "HAProxy kubernetes-ingress, port of statistics"),
    (1042, "HAProxy's ingress controller (health)", "HAProxy kubernetes-ingress, port of healthz"),
    (1338, "containerd's metrics", "containerd config.toml, [metrics] address, as images of nodes set it"),
    (1936, "OpenShift's router (health)", "OpenShift, host port registry"),
    (2000, "the X-Ray daemon and the CloudWatch agent (X-Ray)", "X-Ray daemon, Socket.UDPAddress and TCPAddress"),
    (2020, "Fluent Bit", "fluent-bit [SERVICE] HTTP_Port"),
    (2049, "NFS", "nfs.conf [nfsd] port"),
    (2112, "kube-vip and Tetragon (metrics)", "kube-vip --prometheusHTTPServer; Tetragon tetragon.prometheus.port"),
    (2375, "dockerd", "dockerd --host, without TLS"),
    (2376, "dockerd", "dockerd --host, with TLS"),
    (2379, "etcd", "etcd --listen-client-urls"),
    (2380, "etcd", "etcd --listen-peer-urls"),
    (2381, "etcd's metrics, kops' etcd for events", "etcd --listen-metrics-urls, as kubeadm sets it; kops, port usage"),
    (2382, "etcd of k3s and RKE2", "k3s, requirements, local ports"),
    (2703, "the EKS Pod Identity agent (probes)", "EKS Pod Identity agent, chart agent.probePort"),
    (2705, "the EKS Pod Identity agent (metrics)", "EKS Pod Identity agent, chart metrics.port"),
    (3300, "Ceph's monitors", "Ceph mon_host, messenger v2"),
    (3988, "kops-controller", "kops, port usage"),
    (3989, "node-local-dns of kops (health)", "kops, port usage"),
    (3990, "the API server's health check of kops", "kops, port usage"),
    (3991, "kops' etcd-manager (for Cilium)", "kops, port usage"),
    (3992, "kops' etcd-manager (for Cilium), kops-controller", "kops, port usage; wellknownports.go of older releases"),
    (3993, "kops' dns-controller", "kops, wellknownports.go"),
    (3994, "kops' etcd-manager", "kops, wellknownports.go"),
    (3995, "kops' etcd-manager", "kops, wellknownports.go"),
    (3996, "kops' etcd-manager", "kops, wellknownports.go"),
    (3997, "kops' etcd-manager", "kops, wellknownports.go"),
    (3998, "kops' dns-controller", "kops, wellknownports.go"),
    (3999, "kops' protokube", "kops, wellknownports.go"),
    (4000, "kops' protokube", "kops, wellknownports.go"),
    (4001, "etcd of kops", "kops, port usage"),
    (4002, "etcd of kops", "kops, port usage"),
    (4180, "OpenShift's machine-config-daemon", "OpenShift, host port registry"),
    (4194, "cAdvisor", "kubelet --cadvisor-port, before Kubernetes 1.12"),
    (4240, "Cilium (health)", "Cilium, system requirements"),
    (4244, "Cilium (Hubble)", "Cilium, system requirements"),
    (4245, "Cilium (Hubble's relay)", "Cilium, system requirements"),
    (4250, "Cilium (mutual authentication)", "Cilium, system requirements"),
    (4251, "Cilium (SPIRE agent's health)", "Cilium, system requirements"),
    (4315, "the CloudWatch agent (OTLP)", "CloudWatch Observability add-on, Application Signals"),
    (4316, "the CloudWatch agent (OTLP)", "CloudWatch Observability add-on, Application Signals"),
    (4317, "OpenTelemetry collectors", "OTLP receiver, grpc endpoint"),
    (4318, "OpenTelemetry collectors", "OTLP receiver, http endpoint"),
    (5000, "the Datadog agent", "datadog.yaml expvar_port"),
    (5001, "the Datadog agent, the registry mirror of k3s and RKE2", "datadog.yaml cmd_port; k3s, requirements"),
    (5010, "the Datadog agent (security agent)", "datadog.yaml security_agent.cmd_port"),
    (5011, "the Datadog agent (security agent)", "datadog.yaml security_agent.expvar_port"),
    (5012, "the Datadog agent (trace agent)", "datadog.yaml apm_config.debug.port"),
    (5473, "Calico's Typha", "Typha ServerPort"),
    (5555, "the Datadog agent (health)", "datadog.yaml health_port, as its chart sets it"),
    (6060, "pprof of many daemons (Cilium among them), HAProxy's ingress controller", "Cilium pprof-port; HAProxy kubernetes-ingress, controller port"),
    (6061, "Cilium's operator (pprof)", "Cilium, system requirements"),
    (6062, "the Datadog agent (process agent), Cilium (Hubble's relay, pprof)", "datadog.yaml process_config.expvar_port; Cilium, system requirements"),
    (6162, "the Datadog agent (process agent)", "datadog.yaml process_config.cmd_port"),
    (6443, "the API server", "kubeadm localAPIEndpoint.bindPort; kube-apiserver --secure-port"),
    (6444, "k3s' and RKE2's client-side load balancer", "k3s, requirements, local ports"),
    (6781, "Weave Net (metrics)", "weave-npc --metrics-addr"),
    (6782, "Weave Net (metrics)", "weave, WEAVE_STATUS_ADDR"),
    (6783, "Weave Net", "weave, WEAVE_PORT"),
    (6784, "Weave Net", "weave --http-addr"),
    (6789, "Ceph's monitors, Tetragon (health)", "Ceph mon_host, messenger v1; Tetragon tetragon.healthGrpc.port"),
    (6942, "Cilium's operator of kops (metrics)", "kops, port usage"),
    (7472, "MetalLB (metrics)", "MetalLB --port, prometheus.metricsPort of older charts"),
    (7473, "MetalLB (metrics of FRR)", "MetalLB, speaker.frr.metricsPort of older charts"),
    (7946, "MetalLB (memberlist)", "MetalLB, speaker.memberlist.mlBindPort"),
    (8000, "Traefik, Neuron monitor", "Traefik's chart, ports.web.port; neuron-monitor-prometheus.py --port"),
    (8080, "cAdvisor, kube-router, node-local-dns (health), aws-node-termination-handler (probes), and most programs' first choice", "cAdvisor --port; node-local-dns, Corefile, health; aws-node-termination-handler probesServerPort"),
    (8118, "Tetragon (gops)", "Tetragon tetragon.gops.port"),
    (8126, "the Datadog agent (traces)", "datadog.yaml apm_config.receiver_port"),
    (8131, "konnectivity", "proxy-server --server-port"),
    (8132, "konnectivity", "proxy-server --agent-port"),
    (8133, "konnectivity", "proxy-server --admin-port"),
    (8134, "konnectivity", "proxy-server --health-port"),
    (8162, "the EKS network policy agent (metrics)", "aws-network-policy-agent --metrics-bind-addr"),
    (8163, "the EKS network policy agent (health)", "aws-network-policy-agent --health-probe-bind-addr"),
    (8181, "kube2iam, kiam's agent, ingress-nginx", "kube2iam --app-port; kiam agent --port, as its manifests set it; ingress-nginx --default-server-port"),
    (8300, "Consul", "Consul ports.server"),
    (8301, "Consul", "Consul ports.serf_lan"),
    (8302, "Consul", "Consul ports.serf_wan"),
    (8443, "ingress-nginx (webhook), Traefik, and many webhooks", "ingress-nginx --validating-webhook; Traefik's chart, ports.websecure.port"),
    (8500, "Consul", "Consul ports.http"),
    (8501, "Consul", "Consul ports.https, as its chart sets it"),
    (8502, "Consul", "Consul ports.grpc"),
    (8600, "Consul", "Consul ports.dns"),
    (8686, "Vector", "Vector api.address"),
    (8765, "Falco", "falco.yaml webserver.listen_port"),
    (8797, "OpenShift's machine-config-daemon", "OpenShift, host port registry"),
    (8888, "OpenTelemetry collectors (metrics)", "collector, service.telemetry.metrics"),
    (9001, "OpenShift's machine-config-daemon, Portworx", "OpenShift, host port registry; Portworx, start port"),
    (9080, "cephcsi and promtail", "Rook CSI_RBD_LIVENESS_METRICS_PORT; promtail server.http_listen_port"),
    (9081, "cephcsi", "Rook CSI_CEPHFS_LIVENESS_METRICS_PORT"),
    (9090, "Prometheus, and metrics of many daemons", "Prometheus --web.listen-address"),
    (9091, "Calico's Felix (metrics)", "Felix PrometheusMetricsPort"),
    (9092, "aws-node-termination-handler (metrics)", "aws-node-termination-handler prometheusServerPort"),
    (9093, "Calico's Typha (metrics)", "Typha PrometheusMetricsPort"),
    (9098, "Calico's Typha (health)", "Typha HealthPort"),
    (9099, "Calico's Felix (health), OpenShift's cluster-version-operator", "Felix HealthPort; OpenShift, reserved ports"),
    (9100, "node exporter", "node_exporter --web.listen-address"),
    (9101, "OpenShift (SDN, OVN-Kubernetes)", "OpenShift, host port registry"),
    (9102, "OpenShift (SDN, OVN-Kubernetes)", "OpenShift, host port registry"),
    (9103, "OpenShift (SDN, OVN-Kubernetes)", "OpenShift, host port registry"),
    (9105, "OpenShift (SDN, OVN-Kubernetes)", "OpenShift, ovnkube-node metrics"),
    (9107, "OpenShift (SDN, OVN-Kubernetes)", "OpenShift, ovnkube egress IP health"),
    (9108, "OpenShift (SDN, OVN-Kubernetes)", "OpenShift, ovnkube-control-plane metrics"),
    (9120, "MetalLB (metrics)", "MetalLB prometheus.metricsPort"),
    (9121, "MetalLB (metrics of FRR)", "MetalLB speaker.frr.metricsPort"),
    (9182, "windows_exporter", "windows_exporter --web.listen-address"),
    (9234, "Cilium's operator", "cilium-operator --operator-api-serve-addr"),
    (9253, "node-local-dns (metrics)", "node-local-dns, Corefile, prometheus"),
    (9256, "process-exporter", "process-exporter -web.listen-address"),
    (9258, "OpenShift's cloud controller manager operator", "OpenShift, host port registry"),
    (9259, "OpenShift's cloud controller manager operator", "OpenShift, host port registry"),
    (9283, "Ceph's manager (metrics)", "Ceph mgr/prometheus/server_port"),
    (9323, "dockerd's metrics", "daemon.json metrics-addr, as Docker's documentation has it"),
    (9345, "RKE2 (supervisor)", "RKE2, requirements"),
    (9353, "node-local-dns (metrics)", "node-local-dns, node-cache -metrics-listen-address"),
    (9400, "NVIDIA's DCGM exporter", "dcgm-exporter --address"),
    (9411, "OpenTelemetry collectors (Zipkin)", "OpenTelemetry collector's chart, ports.zipkin.hostPort"),
    (9537, "CRI-O (metrics)", "OpenShift, host port registry; crio.conf metrics_port"),
    (9543, "kube2iam (metrics, by its chart)", "kube2iam --metrics-port, as its chart has it"),
    (9620, "kiam (metrics)", "kiam --prometheus-listen-addr, as its manifests set it"),
    (9637, "OpenShift (metrics of CRI-O)", "OpenShift, kube-rbac-proxy-crio"),
    (9641, "OVN-Kubernetes of OpenShift", "OpenShift, host port registry"),
    (9642, "OVN-Kubernetes of OpenShift", "OpenShift, host port registry"),
    (9643, "OVN-Kubernetes of OpenShift", "OpenShift, host port registry"),
    (9644, "OVN-Kubernetes of OpenShift", "OpenShift, host port registry"),
    (9796, "node exporter of Rancher's monitoring", "rancher-monitoring, prometheus-node-exporter.service.port"),
    (9808, "the CSI livenessprobe sidecar's default (many CSI drivers)", "livenessprobe --health-port"),
    (9809, "the EFS CSI driver (liveness)", "EFS CSI driver, node-daemonset, --health-port"),
    (9878, "Cilium's Envoy (health)", "Cilium, system requirements"),
    (9879, "Cilium (health)", "Cilium, system requirements"),
    (9890, "Cilium (gops)", "Cilium, system requirements"),
    (9891, "Cilium's operator (gops)", "Cilium, system requirements"),
    (9893, "Cilium (Hubble's relay, gops)", "Cilium, system requirements"),
    (9901, "Envoy (admin)", "Envoy admin.address; Cilium, system requirements"),
    (9909, "the CSI drivers of JuiceFS and EFS (liveness)", "JuiceFS CSI driver, HEALTH_PORT; EFS CSI driver's controller, --health-port"),
    (9962, "Cilium (metrics)", "Cilium, system requirements"),
    (9963, "Cilium's operator (metrics)", "Cilium, system requirements"),
    (9964, "Cilium's Envoy (metrics)", "Cilium, system requirements"),
    (9965, "Cilium (metrics of Hubble)", "Cilium hubble.metrics.port"),
    (9977, "etcd of OpenShift", "OpenShift, host port registry"),
    (9978, "etcd of OpenShift (metrics)", "OpenShift, host port registry"),
    (9979, "etcd of OpenShift (metrics)", "OpenShift, host port registry"),
    (10010, "containerd and CRI-O (streaming)", "k3s, requirements, local ports; OpenShift, host port registry"),
    (10245, "ingress-nginx (profiler)", "ingress-nginx --profiler-port"),
    (10246, "ingress-nginx (status)", "ingress-nginx --status-port"),
    (10247, "ingress-nginx (streams)", "ingress-nginx --stream-port"),
    (10248, "the kubelet (health)", "kubelet healthzPort"),
    (10249, "kube-proxy (metrics)", "kube-proxy metricsBindAddress"),
    (10250, "the kubelet", "kubelet port"),
    (10251, "the scheduler (older)", "kube-scheduler --port, before Kubernetes 1.23"),
    (10252, "the controller manager (older)", "kube-controller-manager --port, before Kubernetes 1.24"),
    (10253, "cloud controller managers (older)", "cloud-controller-manager --port"),
    (10254, "ingress-nginx (metrics)", "ingress-nginx --healthz-port"),
    (10255, "the kubelet (read-only)", "kubelet readOnlyPort"),
    (10256, "kube-proxy (health), Antrea", "kube-proxy healthzBindAddress; Antrea, network requirements"),
    (10257, "the controller manager", "kube-controller-manager --secure-port"),
    (10258, "cloud controller managers", "cloud-controller-manager --secure-port"),
    (10259, "the scheduler", "kube-scheduler --secure-port"),
    (10260, "cloud controller managers (webhook)", "cloud-controller-manager --webhook-secure-port"),
    (10263, "the cloud node manager of OpenShift", "OpenShift, host port registry"),
    (10300, "CSI drivers of OpenShift (health)", "OpenShift, host port registry"),
    (10301, "CSI drivers of OpenShift (health)", "OpenShift, host port registry"),
    (10302, "CSI drivers of OpenShift (health)", "OpenShift, host port registry"),
    (10303, "CSI drivers of OpenShift (health)", "OpenShift, host port registry"),
    (10349, "Antrea's controller", "Antrea, network requirements"),
    (10350, "Antrea's agent", "Antrea, network requirements"),
    (10351, "Antrea (cluster)", "Antrea, network requirements"),
    (10357, "OpenShift's cluster-policy-controller", "OpenShift, host port registry"),
    (10443, "OpenShift's router", "OpenShift, host port registry"),
    (10444, "OpenShift's router", "OpenShift, host port registry"),
    (11443, "OpenShift's scheduler (recovery)", "OpenShift, host port registry"),
    (12345, "Grafana Alloy and its agent", "alloy run --server.http.listen-addr"),
    (13133, "OpenTelemetry collectors (health)", "collector, extension health_check"),
    (14250, "OpenTelemetry collectors (Jaeger)", "OpenTelemetry collector's chart, ports.jaeger-grpc.hostPort"),
    (14268, "OpenTelemetry collectors (Jaeger)", "OpenTelemetry collector's chart, ports.jaeger-thrift.hostPort"),
    (17697, "OpenShift's API server (health)", "OpenShift, host port registry"),
    (20244, "kube-router (health)", "kube-router --health-port"),
    (20256, "node-problem-detector", "node-problem-detector --port"),
    (20257, "node-problem-detector (metrics)", "node-problem-detector --prometheus-port"),
    (22623, "OpenShift's machine-config-server", "OpenShift, host port registry"),
    (22624, "OpenShift's machine-config-server", "OpenShift, host port registry"),
    (24231, "Fluentd (metrics)", "fluent-plugin-prometheus port"),
    (25888, "the CloudWatch agent", "CloudWatch agent, emf.service_address"),
    (29101, "OpenShift SDN (metrics)", "OpenShift, host port registry"),
    (29102, "OVN-Kubernetes of OpenShift (metrics)", "OpenShift, host port registry"),
    (29103, "OVN-Kubernetes of OpenShift (metrics)", "OpenShift, host port registry"),
    (29602, "the Azure disk CSI driver's controller (liveness)", "Azure disk CSI driver, --health-port"),
    (29603, "the Azure disk CSI driver (liveness)", "Azure disk CSI driver, csi-azuredisk-node, --health-port"),
    (29605, "the Azure disk CSI driver (metrics)", "Azure disk CSI driver, csi-azuredisk-node, --metrics-address"),
    (29612, "the Azure file CSI driver's controller (liveness)", "Azure file CSI driver, --health-port"),
    (29613, "the Azure file CSI driver (liveness)", "Azure file CSI driver, csi-azurefile-node, --health-port"),
    (29615, "the Azure file CSI driver (metrics)", "Azure file CSI driver, csi-azurefile-node, --metrics-address"),
    (29642, "the SMB CSI driver's controller (liveness)", "SMB CSI driver, --health-port"),
    (29643, "the SMB CSI driver (liveness)", "SMB CSI driver, csi-smb-node, --health-port"),
    (29645, "the SMB CSI driver (metrics)", "SMB CSI driver, csi-smb-node, --metrics-address"),
    (29652, "the NFS CSI driver's controller (liveness)", "NFS CSI driver, --http-endpoint"),
    (29653, "the NFS CSI driver (liveness)", "NFS CSI driver, csi-nfs-node, --http-endpoint"),
    (50051, "the VPC CNI (ipamd), kube-router (GoBGP)", "VPC CNI, aws-node's probes; kube-router, GoBGP's gRPC"),
    (50052, "the EKS network policy agent", "aws-network-policy-agent, rpc_handler.go"),
    (54321, "Tetragon", "Tetragon tetragon.grpc.address of older charts"),
    (55679, "OpenTelemetry collectors (zpages)", "collector, extension zpages"),
    (60000, "OpenShift's baremetal-operator", "OpenShift, host port registry"),
    (61678, "the VPC CNI (metrics)", "VPC CNI, port `metrics` of aws-node"),
    (61679, "the VPC CNI (introspection)", "VPC CNI, INTROSPECTION_BIND_ADDRESS"),
    (61680, "the EKS network policy agent (metrics)", "aws-network-policy-agent, metricsPort"),
];

/// Returns the software that uses a port by default, or `None` if the table does not list the port.
pub fn wanted_by(port: u16) -> Option<&'static str> {
    let found = WELL_KNOWN.binary_search_by_key(&port, |(port, ..)| *port);
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
            Some("the CSI livenessprobe sidecar's default (many CSI drivers)")
        );
        assert_eq!(wanted_by(9807), None);
    }

    /// A row needs a source, so that readers can verify it.
    #[test]
    fn each_row_names_the_setting_of_its_port() {
        assert!(WELL_KNOWN.len() > 190, "{}", WELL_KNOWN.len());
        for (port, who, setting) in WELL_KNOWN {
            assert!(!who.is_empty() && setting.len() >= 8, "{port}");
            assert!(
                !setting.contains("://"),
                "{port}: documents move; their names stay"
            );
        }
    }

    /// This software is common on nodes that run kube2iam or kiam.
    #[rstest::rstest]
    #[case::kubelet(&[10_248, 10_250, 10_255])]
    #[case::kube_proxy(&[10_249, 10_256])]
    #[case::cilium(&[4240, 4244, 9878, 9879, 9890, 9962, 9963, 9964, 9965])]
    #[case::calico(&[179, 5473, 9091, 9093, 9098, 9099])]
    #[case::aws_node(&[50_051, 50_052, 61_678, 61_679, 8162, 8163])]
    #[case::eks_pod_identity_agent(&[80, 2703, 2705])]
    #[case::kube2iam_and_kiam(&[8181, 9543, 9620])]
    #[case::ingress_nginx(&[80, 443, 8181, 8443, 10_245, 10_246, 10_247, 10_254])]
    #[case::kops(&[3988, 3989, 3990, 3991, 3992, 3993, 3994, 3995, 3996, 3997, 3998, 3999, 4000, 4001, 4002])]
    #[case::node_local_dns(&[53, 8080, 9253, 9353])]
    #[case::csi(&[9808, 9809, 9909, 29_603, 29_613, 29_643, 29_652, 29_653])]
    #[case::exporters(&[2020, 8126, 9100, 9400, 9537, 13_133])]
    #[case::rancher(&[6443, 6444, 9345, 10_010])]
    fn ports_of_software_that_runs_on_nodes_are_listed(#[case] ports: &[u16]) {
        let missing: Vec<&u16> = ports.iter().filter(|port| wanted_by(**port).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    /// Every `ADDRESS:PORT` in documents, chart and messages uses the suggested port.
    #[rstest::rstest]
    #[case::configuration(include_str!("../../deploy/docs/configuration.md"))]
    #[case::operations(include_str!("../../deploy/docs/operations.md"))]
    #[case::migration(include_str!("../../deploy/docs/migration.md"))]
    #[case::values(include_str!("../../deploy/helm/metaproxy/values.yaml"))]
    #[case::chart(include_str!("../../deploy/helm/metaproxy/templates/_helpers.tpl"))]
    #[case::migrate(include_str!("migrate/kube2iam.rs"))]
    #[case::flag(include_str!("cli/values.rs"))]
    fn the_suggested_admin_port_is_used_everywhere_and_is_not_a_well_known_port(#[case] text: &str) {
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
