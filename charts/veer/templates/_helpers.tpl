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

{{/* An image's name. Takes (dict "root" $ "image" VALUES). */}}
{{- define "veer.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
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
