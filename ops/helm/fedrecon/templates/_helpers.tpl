{{- define "fedrecon.name" -}}
{{- if contains "fedrecon" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-fedrecon" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels by which pods are found: (dict "root" $ "role" "coordinator"). They never change between versions. */}}
{{- define "fedrecon.selector" -}}
app.kubernetes.io/name: fedrecon
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "fedrecon.labels" -}}
{{ include "fedrecon.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "fedrecon.image" -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}fedrecon-{{ .role }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* The aggregators, each by the name that its pod keeps, as coordinators call them. */}}
{{- define "fedrecon.aggregators" -}}
{{- $name := include "fedrecon.name" . -}}
{{- $targets := list -}}
{{- range $index := until (int .Values.aggregator.replicas) -}}
{{- $targets = append $targets (printf "%s-aggregator-%d.%s-aggregators.%s.svc.cluster.local:7002" $name $index $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $targets -}}
{{- end }}

{{- define "fedrecon.environment" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: FEDRECON_SECRETS_FOLDER
  value: /etc/fedrecon/secrets
- name: FEDRECON_BLOBS_URL
  value: {{ required "blobs.url: every replica needs the same place for blobs, for instance s3://BUCKET/PREFIX" .root.Values.blobs.url | quote }}
- name: FEDRECON_DRAIN_SECONDS
  value: {{ .root.Values.drainSeconds | quote }}
{{- with .root.Values.redis.url }}
- name: FEDRECON_REDIS_URL
  value: {{ . | quote }}
{{- end }}
{{- if .root.Values.tls.secretName }}
- name: FEDRECON_TLS_CERTIFICATE
  value: /etc/fedrecon/tls/tls.crt
- name: FEDRECON_TLS_KEY
  value: /etc/fedrecon/tls/tls.key
- name: FEDRECON_TLS_SERVER_AUTHORITY
  value: /etc/fedrecon/tls/ca.crt
{{- else }}
- name: FEDRECON_TLS
  value: "off"
{{- end }}
{{- range $variable, $value := .root.Values.settings }}
- name: {{ $variable }}
  value: {{ $value | quote }}
{{- end }}
{{- range $variable, $value := .root.Values.blobs.environment }}
- name: {{ $variable }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/*
What all pods share, above and below their own container: nobody is root, nothing is written but to /tmp, Kubernetes'
own variables of services stay away, and a pod that is told to end first leaves the service's addresses.
*/}}
{{- define "fedrecon.pod" -}}
serviceAccountName: {{ include "fedrecon.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add (int .root.Values.drainSeconds) 15 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "fedrecon.selector" . | nindent 8 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "fedrecon.container" -}}
image: {{ include "fedrecon.image" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
{{- with .root.Values.blobs.credentialsSecret }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
startupProbe:
  exec:
    command: ["python", "-m", "fedrecon.ops.probe", {{ .role | quote }}]
  periodSeconds: 3
  timeoutSeconds: 5
  failureThreshold: 60
readinessProbe:
  exec:
    command: ["python", "-m", "fedrecon.ops.probe", {{ .role | quote }}]
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  exec:
    command: ["python", "-m", "fedrecon.ops.probe", {{ .role | quote }}]
  periodSeconds: 60
  timeoutSeconds: 10
  failureThreshold: 3
lifecycle:
  preStop:
    exec:
      command: ["sleep", "5"]
{{- end }}

{{- define "fedrecon.mounts" -}}
- name: temporary
  mountPath: /tmp
- name: secrets
  mountPath: /etc/fedrecon/secrets
  readOnly: true
{{- if .root.Values.tls.secretName }}
- name: tls
  mountPath: /etc/fedrecon/tls
  readOnly: true
{{- end }}
{{- end }}

{{- define "fedrecon.volumes" -}}
- name: temporary
  emptyDir:
    sizeLimit: 2Gi
- name: secrets
  secret:
    secretName: {{ required "secrets.name: the secret with the keys of `fedrecon keys new`" .root.Values.secrets.name }}
    defaultMode: 0440
{{- with .root.Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "fedrecon.annotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: "9090"
prometheus.io/path: /metrics
{{- end }}
