# Sourced by tpu_vm.sh: a slice, requested by queued resource (`queue` is set) or as a TPU VM without
# one. Reads tpu_vm.sh's options: name, where (--zone and --project), ready (the state in which the
# slice can be used), accelerator_type, runtime_version, num_slices, spot, service_account,
# poll_seconds, dry_run.
# shellcheck shell=bash disable=SC2154

# The command that says in which state the slice is.
set_describe() {
  if [[ -n $queue ]]; then
    describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)")
  else
    describe=(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)")
  fi
}

# on_workers 0|all COMMAND...: runs a command over ssh on worker 0 of slice 0, or on all of all.
on_workers() {
  local workers=$1
  shift
  if [[ -n $queue ]]; then
    run gcloud compute tpus queued-resources ssh "$name" --node="$workers" --worker="$workers" \
      "${where[@]}" --command="$(quote "$@")"
  else
    run gcloud compute tpus tpu-vm ssh "$name" --worker="$workers" "${where[@]}" --command="$(quote "$@")"
  fi
}

# copy_to_workers FILES...: into ~/bertjax of every worker.
copy_to_workers() {
  if [[ -n $queue ]]; then
    run gcloud compute tpus queued-resources scp "$@" "$name:bertjax/" --node=all --worker=all "${where[@]}"
  else
    run gcloud compute tpus tpu-vm scp "$@" "$name:bertjax/" --worker=all "${where[@]}"
  fi
}

# The state of the slice; ABSENT if there is none.
state() {
  local output
  if output=$("${describe[@]}" 2>&1); then
    echo "${output##*$'\n'}"
  elif [[ $output == *NOT_FOUND* || $output == *"not found"* ]]; then
    echo ABSENT
  else
    echo "$output" >&2
    return 1
  fi
}

# Requests the slice unless it is there, and waits until it can be used.
create() {
  local request=(--accelerator-type="$accelerator_type") now last=
  if [[ -n $queue ]]; then
    request=(queued-resources create "$name" "${request[@]}" --runtime-version="$runtime_version" --async)
    if ((num_slices > 1)); then
      request+=(--node-count="$num_slices" --node-prefix="$name")
    else
      request+=(--node-id="$name")
    fi
  else
    request=(tpu-vm create "$name" "${request[@]}" --version="$runtime_version" --async)
  fi
  if [[ -n $spot ]]; then request+=(--spot); fi
  if [[ -n $service_account ]]; then request+=(--service-account="$service_account"); fi
  if [[ -n $dry_run ]]; then
    say "unless it is there already:"
    run gcloud compute tpus "${request[@]}" "${where[@]}"
    say "every $poll_seconds s, until it is $ready:"
    run "${describe[@]}"
    return
  fi
  while true; do
    now=$(state)
    if [[ $now != "$last" ]]; then say "$(date -u +%H:%M:%S) $name is $now"; fi
    last=$now
    case $now in
      "$ready") return ;;
      ABSENT)
        run gcloud compute tpus "${request[@]}" "${where[@]}"
        continue
        ;;
      FAILED | SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
        fail "$name is $now and will not come back: delete it first (launch/tpu_vm.sh delete), \
or let launch/tpu_vm.sh watch do it"
        ;;
    esac
    sleep "$poll_seconds"
  done
}

# Gives the slice back, with a queue or without: one of the other kind would go on costing unseen.
delete() (
  if [[ -z $dry_run && $(state) == ABSENT ]]; then
    if [[ -n $queue ]]; then queue=''; else queue=1; fi
    set_describe
    if [[ $(state) == ABSENT ]]; then
      say "$name is not there"
      return
    fi
  fi
  request=(queued-resources delete "$name" "${where[@]}" --force --quiet)
  if [[ -z $queue ]]; then request=(tpu-vm delete "$name" "${where[@]}" --quiet); fi
  run gcloud compute tpus "${request[@]}"
)
