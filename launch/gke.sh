#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet: one Job per slice, one Pod per host.
set -euo pipefail

usage() {
  cat <<'END'
launch/gke.sh COMMAND --name=NAME --image=IMAGE --accelerator=TYPE --topology=AxB \
  [options] -- --config=RECIPE --workdir=DIR [training flags]

  render  print the JobSet
  start   create it with kubectl, unless it exists
  status  of the JobSet, its Jobs and its Pods
  log     follow the log of process 0
  delete  remove it; training is asked to save first

  --name=NAME             of the JobSet: a-z, 0-9 and -
  --image=IMAGE           with bertjax and its extra `tpu`: launch/Dockerfile
  --accelerator=TYPE      value of the label cloud.google.com/gke-tpu-accelerator, for example
                          tpu-v5-lite-podslice, tpu-v4-podslice, tpu-v5p-slice, tpu-v6e-slice
  --topology=AxB or AxBxC chips of a slice
  --chips_per_host=N      chips of a node: 4, or all chips of a smaller slice
  --num_slices=1          slices that train together; each is a node pool
  --claim=NAME            PersistentVolumeClaim (ReadWriteMany), mounted at /mnt/bertjax, for the
                          --workdir and the store; not needed if they are gs://BUCKET/FOLDER
  --service_account=NAME  of Kubernetes, for the Pods
  --spot                  run on Spot nodes
  --host_network          use the network of the host, which is faster between slices; not on
                          Autopilot
  --max_restarts=100      restarts of the JobSet before it fails
  --namespace=NAME        default: that of kubectl's context
  --dry-run               print the JobSet and every command instead of running it

Exit codes 1 and 2 of training fail the JobSet at once. 75, a signal, or an evicted or preempted
Pod restarts all of it, and training resumes from its newest checkpoint.
Needs JobSet 0.10 or newer in the cluster: https://jobset.sigs.k8s.io/docs/installation
END
}

launch=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$launch/common.sh"

command=${1:-}
case $command in
  render | start | status | log | delete) shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "expected a command (render, start, status, log, delete), found '$command'" ;;
esac

name='' image='' accelerator='' topology='' chips_per_host='' num_slices=1 claim='' service_account=''
spot='' host_network='' max_restarts=100 namespace='' dry_run=''
while (($#)); do
  case $1 in
    --name=* | --image=* | --accelerator=* | --topology=* | --chips_per_host=* | --num_slices=* | \
      --claim=* | --service_account=* | --max_restarts=* | --namespace=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --spot) spot='"true"' ;;
    --host_network) host_network=1 ;;
    --dry-run) dry_run=1 ;;
    --) shift; break ;;
    *) fail "unknown option $1; --help lists them, and training flags come after --" ;;
  esac
  shift
done
flags=("$@")

check_options() {
  need_option name "$name" NAME
  # Pods are called NAME-slice-J-I-xxxxx, and 63 characters is all that a host name may have.
  [[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=$name: expected at most 40 of a-z, 0-9 and -, beginning with a letter"
  if [[ $command != render ]]; then need_command kubectl "https://kubernetes.io/docs/tasks/tools"; fi
  kubectl=(kubectl)
  if [[ -n $namespace ]]; then kubectl+=(--namespace="$namespace"); fi
  case $command in render | start) check_jobset ;; esac
}

check_jobset() {
  local number chips=1
  need_option image "$image" IMAGE
  need_option accelerator "$accelerator" TYPE
  need_option topology "$topology" AxB
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology=$topology: expected AxB or AxBxC, for example 4x4"
  for number in ${topology//x/ }; do chips=$((chips * number)); done
  chips_per_host=${chips_per_host:-$((chips < 4 ? chips : 4))}
  for number in num_slices chips_per_host max_restarts; do
    [[ ${!number} =~ ^[1-9][0-9]*$ ]] || fail "--$number=${!number}: not a whole number above 0"
  done
  ((chips % chips_per_host == 0)) ||
    fail "--topology=$topology has $chips chips, which --chips_per_host=$chips_per_host does not divide"
  hosts=$((chips / chips_per_host))
  check_training_flags "$(dirname "$launch")" "${flags[@]}"
  local recipe workdir
  recipe=$(flag_value config "${flags[@]}")
  workdir=$(flag_value workdir "${flags[@]}")
  [[ $recipe != *.py ]] || fail "--config=$recipe: the Pods see only the recipes in the image; add it to configs/"
  if [[ $workdir != /mnt/bertjax/* && $workdir != gs://* ]]; then
    fail "--workdir=$workdir is not below /mnt/bertjax, where --claim is mounted, nor in a bucket"
  fi
}

# A word as a YAML string in double quotes.
yaml_string() {
  local word=${1//\\/\\\\}
  echo "\"${word//\"/\\\"}\""
}

render() {
  local word
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
${namespace:+  namespace: $namespace
}  annotations:
    # One Job a node pool, that is a slice.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    # No Pod of the attempt before may be left when the new ones look for each other.
    restartStrategy: BlockingRecreate
    rules:
      # What is not an error of training restarts all slices, which is what happens without a rule.
      - name: training_failed
        action: FailJobSet
        onJobFailureReasons:
          - PodFailurePolicy
  replicatedJobs:
    - name: slice
      replicas: $num_slices
      template:
        spec:
          completionMode: Indexed
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              # First: a Pod that is being taken away may fail in any way.
              - action: Count
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [1, 2]
          template:
            spec:
              restartPolicy: Never
              # Time to save after SIGTERM. A Spot node that is preempted gives less.
              terminationGracePeriodSeconds: 300
${service_account:+              serviceAccountName: $service_account
}${host_network:+              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
}              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
${spot:+                cloud.google.com/gke-spot: $spot
}              containers:
                - name: train
                  image: $(yaml_string "$image")
                  command: ["python", "-m", "bertjax.train"]
                  args:
END
  for word in "${flags[@]}"; do echo "                    - $(yaml_string "$word")"; done
  # GKE adds TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_*: from them
  # JAX finds the other processes.
  cat <<END
                  env:
                    # With the platform named, JAX stops where it finds no TPU.
                    - name: JAX_PLATFORMS
                      value: tpu,cpu
                  resources:
                    limits:
                      google.com/tpu: $chips_per_host
${claim:+                  volumeMounts:
                    - name: shared
                      mountPath: /mnt/bertjax
              volumes:
                - name: shared
                  persistentVolumeClaim:
                    claimName: $claim
}
END
}

start() {
  if [[ -n $dry_run ]]; then
    say "unless it is there already:"
    run "${kubectl[@]}" create --filename=-
    say "which reads:"
    render
    return
  fi
  check_recipe "$(dirname "$launch")" "${flags[@]}"
  say "in every Pod: $(quote python -m bertjax.train "${flags[@]}")"
  if "${kubectl[@]}" get jobset "$name" >/dev/null 2>&1; then
    say "JobSet $name is there already; to begin anew, delete it first: it continues from its checkpoints"
  else
    quote "${kubectl[@]}" create --filename=-
    render | "${kubectl[@]}" create --filename=-
  fi
}

of_this_jobset=--selector=jobset.sigs.k8s.io/jobset-name=$name
check_options
case $command in
  render | start) "$command" ;;
  status)
    run "${kubectl[@]}" get jobset "$name"
    run "${kubectl[@]}" get job,pod "$of_this_jobset" --output=wide
    ;;
  log)
    run "${kubectl[@]}" logs --follow --tail=100 --container=train \
      "$of_this_jobset,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete) run "${kubectl[@]}" delete jobset "$name" --ignore-not-found --cascade=foreground ;;
esac
