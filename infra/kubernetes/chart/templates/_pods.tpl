{{- /* What the pods of head and workers have in common. */ -}}

{{- define "quantfleet.labels" -}}
app.kubernetes.io/name: quantfleet
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "quantfleet.fleet" -}}
{{- $own := dict
  "http" (dict "host" "0.0.0.0" "port" 8000)
  "auth" (dict "keys_file" "/etc/quantfleet/keys/keys.jsonl")
-}}
{{- mergeOverwrite $own (deepCopy .Values.fleet) | toYaml }}
{{- end }}

{{- /* Another fleet.yaml makes another RayService spec: a new cluster beside the old one, which ends when it serves. */}}
{{- define "quantfleet.metadata" -}}
labels:
  {{- include "quantfleet.labels" . | nindent 2 }}
annotations:
  checksum/fleet: {{ include "quantfleet.fleet" . | sha256sum }}
{{- end }}

{{- define "quantfleet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "quantfleet.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "quantfleet.mounts" -}}
- {name: fleet, mountPath: /etc/quantfleet/fleet.yaml, subPath: fleet.yaml, readOnly: true}
- {name: keys, mountPath: /etc/quantfleet/keys, readOnly: true}
- {name: cache, mountPath: /cache}
- {name: shm, mountPath: /dev/shm}
{{- end }}

{{- define "quantfleet.volumes" -}}
- name: fleet
  configMap: {name: {{ .Release.Name }}-fleet}
- name: keys
  secret: {secretName: {{ .Values.auth.secretName }}}
- name: cache
  persistentVolumeClaim: {claimName: {{ .Values.cache.existingClaim | default (printf "%s-cache" .Release.Name) }}}
{{- end }}

{{- define "quantfleet.image" -}}
image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
