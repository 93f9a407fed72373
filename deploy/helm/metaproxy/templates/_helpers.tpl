{{- define "metaproxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "metaproxy.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "metaproxy.labels" -}}
{{ include "metaproxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "metaproxy.serviceAccount" -}}
{{- default (ternary (include "metaproxy.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "metaproxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* maxSurge of DaemonSets is on from 1.22. */}}
{{- define "metaproxy.canSurge" -}}
{{- if semverCompare ">=1.22-0" .Capabilities.KubeVersion.Version -}}
true
{{- end -}}
{{- end -}}

{{/* Whether a new agent starts beside the old one: two agents cannot have one fixed port. */}}
{{- define "metaproxy.surges" -}}
{{- if and (include "metaproxy.canSurge" .) (eq (int .Values.interception.listenPort) 0) -}}
true
{{- end -}}
{{- end -}}

{{/* Whether an init container may go on running: on by default from 1.29. */}}
{{- define "metaproxy.nativeSidecars" -}}
{{- if semverCompare ">=1.29-0" .Capabilities.KubeVersion.Version -}}
true
{{- end -}}
{{- end -}}

{{/* The security context of containers; `reads` is for the one that looks up pods by cgroup id. */}}
{{- define "metaproxy.security" -}}
{{- if .hardened -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
capabilities:
  drop: [ALL]
  add:
    # Loads programs and maps.
    - BPF
    # Without it the verifier refuses pointer arithmetic in loops, into which the compiler turns copies.
    - PERFMON
    # Loads and attaches programs that change connections.
    - NET_ADMIN
    {{- if .reads }}
    # Opens a cgroup by its id (open_by_handle_at), to identify the pod of a caller.
    - DAC_READ_SEARCH
    {{- end }}
seccompProfile:
  type: RuntimeDefault
{{- else -}}
privileged: true
readOnlyRootFilesystem: true
{{- end -}}
{{- end -}}

{{/* The fields that pods of agent and guard have in common. */}}
{{- define "metaproxy.pod" -}}
# The listener is on the node's addresses, the guard at its interfaces, and sockets of the node's namespace are never
# intercepted. There are no `ports`: with hostNetwork each would be taken as a port of the node.
hostNetwork: true
# Not the cluster's DNS, which may itself wait for a pod's role.
dnsPolicy: Default
nodeSelector:
  {{- merge (dict) (default (dict) .Values.nodeSelector) (dict "kubernetes.io/os" "linux") | toYaml | nindent 2 }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "metaproxy.volumes" -}}
- name: cgroup
  hostPath:
    path: /sys/fs/cgroup
    type: Directory
- name: run
  hostPath:
    path: {{ .Values.runtimeDir | quote }}
    type: DirectoryOrCreate
{{- end -}}

{{/* The placement of the separate guard: daemonset, sidecar or none. */}}
{{- define "metaproxy.guardPlacement" -}}
{{- if eq (include "metaproxy.word" .Values.guard.kind) "off" -}}
none
{{- else -}}
{{- .Values.guard.placement -}}
{{- end -}}
{{- end -}}

{{- define "metaproxy.guardName" -}}
{{- printf "%s-guard" (include "metaproxy.fullname" . | trunc 57 | trimSuffix "-") -}}
{{- end -}}

{{/* Other labels than the agent's, whose selector must not match the guard's pods. */}}
{{- define "metaproxy.guardSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 57 | trimSuffix "-" }}-guard
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "metaproxy.guardLabels" -}}
{{ include "metaproxy.guardSelector" . }}
app.kubernetes.io/component: guard
app.kubernetes.io/part-of: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The guard's container. */}}
{{- define "metaproxy.guardContainer" -}}
# Keeps pods from the node's metadata service while the agent is away.
- name: guard
  image: {{ include "metaproxy.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - guard
    - {{ printf "--guard=%v" .Values.guard.kind | quote }}
    {{- with .Values.interception.cgroup }}
    - {{ printf "--cgroup=%v" (.) | quote }}
    {{- end }}
    {{- with .Values.interception.cgroupRoot }}
    - {{ printf "--cgroup-root=%v" (.) | quote }}
    {{- end }}
    - {{ printf "--runtime-dir=%v" (.Values.runtimeDir) | quote }}
    - {{ printf "--log=%v" (.Values.log.level) | quote }}
    - {{ printf "--log-format=%v" (.Values.log.format) | quote }}
  securityContext:
    {{- include "metaproxy.security" (dict "hardened" .Values.hardened "reads" false) | nindent 4 }}
  {{- with .Values.guard.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  # Updates wait until it is ready: it keeps pods out, or no agent has served pods since the node booted.
  readinessProbe:
    exec:
      command: [/metaproxy, probe, ready, {{ printf "--runtime-dir=%s" .Values.runtimeDir | quote }}]
    periodSeconds: 5
    timeoutSeconds: 2
  livenessProbe:
    exec:
      command: [/metaproxy, probe, live, {{ printf "--runtime-dir=%s" .Values.runtimeDir | quote }}]
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 6
  volumeMounts:
    - name: cgroup
      mountPath: /host/sys/fs/cgroup
      readOnly: true
    - name: run
      mountPath: {{ .Values.runtimeDir | quote }}
{{- end -}}

{{/* Whether an admission policy limits the agent's tokens: ValidatingAdmissionPolicy is v1 from 1.30. */}}
{{- define "metaproxy.pinsTokens" -}}
{{- if and .Values.webIdentity.enabled .Values.webIdentity.admissionPolicy (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) -}}
true
{{- end -}}
{{- end -}}

{{/*
Policies can be applied before helm installs what they limit: helm makes objects of a kind that it does not know last, and takes over
those that have these annotations and the label managed-by. A hook would be no better: helm deletes its object before it makes it anew
at each upgrade (before-hook-creation), and leaves it when the chart is uninstalled.
*/}}
{{- define "metaproxy.adopted" -}}
meta.helm.sh/release-name: {{ .Release.Name }}
meta.helm.sh/release-namespace: {{ .Release.Namespace }}
{{- end -}}

{{/*
Whether an admission policy limits what the agent patches of nodes. A policy is about the chart's service account; with a
kubeconfig the agent is another user.
*/}}
{{- define "metaproxy.limitsPatches" -}}
{{- if and .Values.startupTaint .Values.startupTaintPolicy (not .Values.kubeconfig) (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) -}}
true
{{- end -}}
{{- end -}}

{{/* YAML reads `on` and `off` without quotes as true and false. */}}
{{- define "metaproxy.word" -}}
{{- if kindIs "bool" . }}{{ ternary "on" "off" . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* The address of metrics. For a PodMonitor the default is all addresses of the node. */}}
{{- define "metaproxy.adminAddress" -}}
{{- if eq (toString .Values.adminAddress) "" -}}
{{- ternary "0.0.0.0:16925" "off" .Values.podMonitor.enabled -}}
{{- else -}}
{{- include "metaproxy.word" .Values.adminAddress -}}
{{- end -}}
{{- end -}}

{{/* The port of metrics. */}}
{{- define "metaproxy.adminPort" -}}
{{- include "metaproxy.adminAddress" . | splitList ":" | last -}}
{{- end -}}

{{- define "metaproxy.check" -}}
{{- if or (kindIs "invalid" .Values.namespacePolicy) (eq (toString .Values.namespacePolicy) "") -}}
{{- fail "namespacePolicy must be chosen: `required` (as kiam: a role must be allowed by an annotation of the pod's namespace; without such an annotation its pods get no role) or `off` (as kube2iam without --namespace-restrictions: every user who may create a pod may have every role that trusts the node's). values.yaml explains both." -}}
{{- end -}}
{{- $admin := include "metaproxy.adminAddress" . -}}
{{- if and .Values.podMonitor.enabled (or (eq $admin "off") (hasPrefix "127." $admin) (hasPrefix "[::1]" $admin)) -}}
{{- fail (printf "podMonitor.enabled needs an adminAddress that Prometheus can reach, such as 0.0.0.0:16925, which is the default if adminAddress is empty; it is %v" $admin) -}}
{{- end -}}
{{- if hasKey .Values.guard "sidecar" -}}
{{- fail "guard.sidecar is guard.placement now: `daemonset` (the default, which also refuses pods while the agent's pod is away), `sidecar` or `none`" -}}
{{- end -}}
{{- if and .Values.kubeconfig (include "metaproxy.pinsTokens" .) -}}
{{- fail "with kubeconfig the agent is another user than its service account, which the admission policy limits: set webIdentity.admissionPolicy=false, and limit that user's tokens by a policy of your own (deploy/docs/iam.md#how-far-that-right-goes)" -}}
{{- end -}}
{{- if and (eq (include "metaproxy.word" .Values.sessions.tags) "eks") (not .Values.sessions.clusterArn) -}}
{{- fail "sessions.tags=eks needs sessions.clusterArn: EKS Pod Identity's tags hold the ARN of the cluster, which `aws eks describe-cluster --name NAME --query cluster.arn --output text` prints" -}}
{{- end -}}
{{- if and .Values.manifests (or .Values.webIdentity.enabled .Values.startupTaint .Values.kubeconfig) -}}
{{- fail "manifests replaces the API server, which webIdentity, startupTaint and kubeconfig need: set manifests, or these" -}}
{{- end -}}
{{- end -}}
