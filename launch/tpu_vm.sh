#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one chip to several slices, by queued resource or without a queue.
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE --accelerator_type=TYPE [options] \
  [-- --config=RECIPE --workdir=DIR [training flags]]

  up      create, setup and start; skips steps that are done already
  create  request the slice and wait for it
  setup   on every worker: install bertjax, mount --mount, copy --store
  start   start training under supervise.sh on every worker
  watch   up, repeated after each preemption of the slice, until training ends
  log     follow the log of worker 0
  status  of the slice and, if it exists, of training on every worker
  stop    send SIGTERM to training on every worker: it saves and ends
  delete  delete the slice; files outside of --mount or a bucket are lost

  --name=NAME               of the queued resource and of its TPU
  --zone=ZONE, --project=ID default: those of `gcloud config`
  --accelerator_type=TYPE   for example v5litepod-16, v4-32, v5p-8, v6e-256
  --runtime_version=V       software of the VMs; default: by the accelerator type
  --spot                    cheaper, and may be taken away at any time
  --num_slices=1            slices that train together over the data-centre network
  --no_queue                create the TPU VM directly instead of by queued resource (one slice)
  --service_account=EMAIL   of the VMs; needs to read the store's bucket and write the
                            workdir's
  --mount=nfs://HOST/SHARE or gs://BUCKET
                            mounted at /mnt/bertjax on every worker, for a --workdir there; not
                            needed for --workdir=gs://BUCKET/FOLDER. A bucket that is mounted must
                            have a hierarchical namespace
  --store=gs://BUCKET/PATH  token store, copied to every worker; becomes --config.data.store
  --revision=HEAD           of this repository, to install; or
  --wheel=FILE              a wheel of bertjax
  --poll_seconds=30         between two queries of the state
  --dry-run                 print every command instead of running it
END
}

launch=$(dirname "${BASH_SOURCE[0]}")
repository=$(dirname "$launch")
# shellcheck source=launch/common.sh
source "$launch/common.sh"
# shellcheck source=launch/tpu_slice.sh
source "$launch/tpu_slice.sh"

command=${1:-}
case $command in
  up | create | setup | start | watch | log | status | stop | delete) shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "expected a command (up, create, setup, start, watch, log, status, stop, delete), found '$command'" ;;
esac

arguments=("$@")
name='' zone='' project='' accelerator_type='' runtime_version='' spot='' num_slices=1 queue=1
service_account='' mount='' store='' revision=HEAD wheel='' poll_seconds=30 dry_run=''
while (($#)); do
  case $1 in
    --name=* | --zone=* | --project=* | --accelerator_type=* | --runtime_version=* | --num_slices=* | \
      --service_account=* | --mount=* | --store=* | --revision=* | --wheel=* | --poll_seconds=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --spot) spot=--spot ;;
    --no_queue) queue='' ;;
    --dry-run) dry_run=1 ;;
    --) shift; break ;;
    *) fail "unknown option $1; --help lists them, and training flags come after --" ;;
  esac
  shift
done
flags=("$@")
ready=ACTIVE # the state in which the slice can be used
if [[ -z $queue ]]; then ready=READY; fi

check_options() {
  need_option name "$name" NAME
  need_command gcloud "https://cloud.google.com/sdk/docs/install"
  project=${project:-$(gcloud config get-value project 2>/dev/null || true)}
  zone=${zone:-$(gcloud config get-value compute/zone 2>/dev/null || true)}
  need_option project "$project" ID
  need_option zone "$zone" ZONE
  [[ $num_slices =~ ^[1-9][0-9]*$ ]] || fail "--num_slices=$num_slices: not a whole number above 0"
  if [[ -z $queue ]] && ((num_slices > 1)); then
    fail "--no_queue creates one slice: for --num_slices=$num_slices leave it out"
  fi
  where=(--zone="$zone" --project="$project")
  set_describe
  case $command in up | watch | create) check_create ;; esac
  case $command in up | watch | setup) check_setup ;; esac
  case $command in up | watch | start) check_start ;; esac
}

check_create() {
  need_option accelerator_type "$accelerator_type" TYPE
  # https://cloud.google.com/tpu/docs/runtimes
  if [[ -z $runtime_version ]]; then
    case $accelerator_type in
      v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime_version=v2-alpha-tpuv5 ;;
      v6e-*) runtime_version=v2-alpha-tpuv6e ;;
      *) fail "--accelerator_type=$accelerator_type: unknown; expected v2-, v3-, v4-, v5litepod-, v5p- \
or v6e-N, or also --runtime_version" ;;
    esac
  fi
}

check_setup() {
  case $mount in '' | nfs://?*/?* | gs://?*) ;; *) fail "--mount=$mount: expected nfs://HOST/SHARE or gs://BUCKET" ;; esac
  case $store in '' | gs://?*/?*) ;; *) fail "--store=$store: expected gs://BUCKET/PATH" ;; esac
  if [[ -n $wheel ]]; then
    [[ -f $wheel ]] || fail "--wheel=$wheel: no such file"
  else
    need_command git "it makes the archive of --revision"
    git -C "$repository" rev-parse --quiet --verify "$revision^{commit}" >/dev/null ||
      fail "--revision=$revision: no such revision in $repository"
  fi
}

check_start() {
  local workdir
  check_training_flags "$repository" "${flags[@]}"
  check_recipe "$repository" "${flags[@]}"
  workdir=$(flag_value workdir "${flags[@]}")
  if [[ -n $mount && $workdir != /mnt/bertjax/* && $workdir != gs://* ]]; then
    fail "--workdir=$workdir is not below /mnt/bertjax, where --mount is mounted, nor in a bucket"
  fi
  if [[ -z $mount && $workdir != gs://* ]]; then
    say "--workdir=$workdir is on each worker's own disk, which several do not share and a Spot slice" \
      "takes with it: gs://BUCKET/FOLDER, or --mount"
  fi
}

setup() {
  local package options files
  if [[ -n $wheel ]]; then
    package=$wheel
  else
    package=$repository/build/bertjax.tar.gz
    if [[ -n $(git -C "$repository" status --porcelain) && -z $dry_run ]]; then
      say "changes that are not committed stay here: what is installed is revision $revision"
    fi
    run mkdir -p "$repository/build"
    run git --git-dir="$repository/.git" archive --format=tar.gz --prefix=source/ --output="$package" "$revision"
  fi
  files=("$package" "$launch/common.sh" "$launch/supervise.sh" "$launch/tpu_vm_worker.sh")
  options=(--package="$(basename "$package")")
  if [[ -n $mount ]]; then options+=(--mount="$mount"); fi
  if [[ -n $store ]]; then options+=(--store="$store"); fi
  on_workers all mkdir -p bertjax
  copy_to_workers "${files[@]}"
  on_workers all bertjax/tpu_vm_worker.sh setup "${options[@]}"
  show_on_workers setup "${options[@]}"
}

start() {
  local flag recipe there=()
  recipe=$(flag_value config "${flags[@]}")
  if [[ $recipe == *.py ]]; then copy_to_workers "$recipe"; fi
  for flag in "${flags[@]}"; do
    case $flag in --config=*.py) flag=--config=$(basename "$flag") ;; esac
    there+=("$flag")
  done
  if [[ -n $store ]]; then there+=(--config.data.store=store); fi
  if [[ -z $dry_run ]]; then say "on every worker: $(quote venv/bin/python -m bertjax.train "${there[@]}")"; fi
  on_workers all bertjax/tpu_vm_worker.sh start "${there[@]}"
  show_on_workers start "${there[@]}"
}

# In a dry run: what the worker's part would run.
show_on_workers() {
  if [[ -n $dry_run ]]; then
    say "which runs there, in ~/bertjax:"
    "$launch/tpu_vm_worker.sh" --dry-run "$@" | sed 's/^/  /'
  fi
}

status() {
  local now
  if [[ -n $dry_run ]]; then
    run "${describe[@]}"
    on_workers all bertjax/tpu_vm_worker.sh status
    return
  fi
  now=$(state)
  say "$name is $now"
  if [[ $now == "$ready" ]]; then on_workers all bertjax/tpu_vm_worker.sh status; fi
}

# What training does on the workers: failed (on one), stopped (on one), running or finished.
training() {
  local report code
  report=$(on_workers all bertjax/tpu_vm_worker.sh status) || return
  echo "$report" >&2
  while read -r code; do
    if ((code != 0 && code != 75 && code < 128)); then echo failed; return; fi
  done < <(sed -n 's/.*: ended with exit code \([0-9]*\)$/\1/p' <<<"$report")
  if grep --quiet --extended-regexp ': (not started|ended with exit code [1-9][0-9]*)$' <<<"$report"; then
    echo stopped
  elif grep --quiet ': running, process' <<<"$report"; then
    echo running
  elif grep --quiet ': ended with exit code 0$' <<<"$report"; then
    echo finished
  else
    return 1 # what was said was lost on its way
  fi
}

watch() {
  local now doing option options=() there=("${where[@]}")
  if [[ -z $queue ]]; then there+=(--no_queue); fi
  if [[ -n $dry_run ]]; then
    create; setup; start
    say "every $poll_seconds s, until training ends; all of this again where it stopped, after a delete" \
      "where the slice was preempted:"
    status
    return
  fi
  # Every worker gets the same commit, however long this runs.
  if [[ -z $wheel ]]; then options=(--revision="$(git -C "$repository" rev-parse "$revision^{commit}")"); fi
  for option in "${arguments[@]}"; do
    if [[ $option != --revision=* ]]; then options+=("$option"); fi
  done
  while true; do
    now=$(state) || now=UNKNOWN
    doing=
    if [[ $now == "$ready" ]]; then doing=$(training) || doing=unknown; fi
    say "$(date -u +%H:%M:%S) $name is $now; training ${doing:-cannot run}"
    case $now:$doing in
      *:finished) say "$name is still there and costs: launch/tpu_vm.sh delete --name=$name ${there[*]}"; return ;;
      *:failed)
        say "$name is still there and costs: launch/tpu_vm.sh delete --name=$name ${there[*]}"
        fail "training failed: launch/tpu_vm.sh log --name=$name ${there[*]} says why" ;;
      *:running | *:unknown | UNKNOWN:) ;;
      FAILED:) fail "$name is FAILED; why: gcloud compute tpus queued-resources describe $name ${where[*]}" ;;
      SUSPENDED: | PREEMPTED: | TERMINATED: | STOPPED:)
        if delete; then continue; fi
        say "that did not work; looking again" ;;
      *) "${BASH_SOURCE[0]}" up "${options[@]}" || say "that did not work; looking again" ;;
    esac
    sleep "$poll_seconds"
  done
}

check_options
case $command in
  up) create; setup; start ;;
  log) on_workers 0 bertjax/tpu_vm_worker.sh log ;;
  stop) on_workers all bertjax/tpu_vm_worker.sh stop ;;
  *) "$command" ;;
esac
