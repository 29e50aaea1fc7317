{{/* Where veer lives: a network is of the system, so never in "default", which is
     what Helm calls no namespace at all. */}}
{{- define "veer.namespace" -}}
{{ eq .Release.Namespace "default" | ternary "kube-system" .Release.Namespace }}
{{- end }}

{{/* Labels of everything. Takes (dict "root" $ "component" NAME). */}}
{{- define "veer.labels" -}}
{{ include "veer.selector" . }}
app.kubernetes.io/part-of: veer
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Labels by which pods are selected; they never change. */}}
{{- define "veer.selector" -}}
app.kubernetes.io/name: {{ .component }}
{{- end }}

{{/* Labels of pods. Takes (dict "root" $ "component" NAME "values" VALUES); veer's
     own come last, since pods are selected by them. */}}
{{- define "veer.podLabels" -}}
{{- $own := include "veer.labels" . | fromYaml }}
{{- toYaml (merge $own (.values.podLabels | default dict)) }}
{{- end }}

{{/* An image's name. Takes (dict "root" $ "image" VALUE). With a digest the tag is
     only for people. */}}
{{- define "veer.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Where the API server is, when the values say so. */}}
{{- define "veer.apiServer" -}}
{{- if .Values.k8sServiceHost -}}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | quote }}
{{- end }}
{{- end }}

{{/* The operator makes nodes ready, so it must run on nodes that are not. */}}
{{- define "veer.operatorTolerations" -}}
- key: node.kubernetes.io/not-ready
  operator: Exists
- key: node.kubernetes.io/network-unavailable
  operator: Exists
- key: node-role.kubernetes.io/control-plane
  operator: Exists
- key: node.cloudprovider.kubernetes.io/uninitialized
  operator: Exists
- key: node.veer.dev/agent-not-ready
  operator: Exists
{{- with .Values.operator.extraTolerations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A container that needs nothing of its node. */}}
{{- define "veer.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The nodes that take part, for the agents' pods: the labels of a LabelSelector as
     nodeSelector, its expressions as affinity, which has the same operators. */}}
{{- define "veer.onNodes" -}}
{{- $nodes := .Values.nodeSelector | default dict }}
{{- with $nodes.matchLabels }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $nodes.matchExpressions }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions: {{- toYaml . | nindent 12 }}
{{- end }}
{{- end }}

{{/* The ClusterNetwork's spec, with the same selector. */}}
{{- define "veer.initialNetwork" -}}
{{- $spec := deepCopy .Values.clusterNetwork }}
{{- with .Values.nodeSelector }}
{{- if and $spec.nodeSelector (ne (toJson $spec.nodeSelector) (toJson .)) }}
{{- fail "clusterNetwork.nodeSelector differs from nodeSelector: set nodeSelector alone, which the agents' DaemonSet and the ClusterNetwork both get" }}
{{- end }}
{{- $_ := set $spec "nodeSelector" . }}
{{- end }}
{{- toYaml $spec }}
{{- end }}

{{/* Directories of CNI on the node, as JSON {"bin": …, "conf": …}. */}}
{{- define "veer.cniDirs" -}}
{{- $presets := dict
      "" (dict "bin" "/opt/cni/bin" "conf" "/etc/cni/net.d")
      "k3s" (dict "bin" "/var/lib/rancher/k3s/data/cni" "conf" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
      "microk8s" (dict "bin" "/var/snap/microk8s/current/opt/cni/bin" "conf" "/var/snap/microk8s/current/args/cni-network")
      "gke" (dict "bin" "/home/kubernetes/bin" "conf" "/etc/cni/net.d") }}
{{- $preset := get $presets (.Values.agent.cniPreset | default "") }}
{{- dict "bin" (.Values.agent.cniBinDir | default $preset.bin) "conf" (.Values.agent.cniConfDir | default $preset.conf) | toJson }}
{{- end }}

{{/* Whether Helm talks to a cluster, that is, installs or upgrades; a plain render
     (helm template, a dry run, Argo CD) finds no object at all. */}}
{{- define "veer.installing" -}}
{{- if lookup "v1" "Namespace" "" "kube-system" }}yes{{ end }}
{{- end }}

{{/* Refuses what could not work, before anything is created. */}}
{{- define "veer.preconditions" -}}
{{- $namespace := include "veer.namespace" . }}
{{- $labels := ((lookup "v1" "Namespace" "" $namespace).metadata).labels | default dict }}
{{- $level := get $labels "pod-security.kubernetes.io/enforce" }}
{{- if and $level (ne $level "privileged") }}
{{- fail (printf "namespace %s enforces Pod Security level %s, under which no agent could start: kubectl label --overwrite namespace %s pod-security.kubernetes.io/enforce=privileged" $namespace $level $namespace) }}
{{- end }}
{{- if and (.Values.podMonitor).enabled (eq (.Values.agent.listenAddress | default "127.0.0.1") "127.0.0.1") }}
{{- fail "podMonitor.enabled needs agent.listenAddress=0.0.0.0 (or ::): on 127.0.0.1 nobody outside the node can read the agents' metrics" }}
{{- end }}
{{- end }}

{{/* Makes an object one of Helm's pre-delete hooks, unless it is to be applied by
     hand. Takes (dict "root" $ "weight" WEIGHT). */}}
{{- define "veer.hook" -}}
{{- if not .root.Values.cleanup.withoutHelm }}
annotations:
  helm.sh/hook: pre-delete
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
{{- end }}
