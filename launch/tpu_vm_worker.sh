#!/usr/bin/env bash
# What tpu_vm.sh runs on every worker of a slice; it lives in ~/bertjax there.
set -euo pipefail

usage() {
  cat <<'END'
tpu_vm_worker.sh [--dry-run] COMMAND

  setup --package=FILE [--store=gs://...] [--mount=nfs://HOST/SHARE|gs://BUCKET]
         installs FILE (an archive of the repository, or a wheel) with its extra `tpu` into venv,
         copies the store to `store`, mounts the share or bucket at /mnt/bertjax
  start FLAGS...  starts training under supervise.sh, unless it runs
  status          one line: running, ended with exit code N, or not started
  log             follows the log
  stop            SIGTERM: training saves and ends; waits for it
END
}

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=launch/common.sh
source ./common.sh
self="$(hostname): tpu_vm_worker.sh"
mount_point=/mnt/bertjax
dry_run=

make_venv() {
  local python
  if [[ -n $dry_run ]]; then
    say "with Python 3.13, 3.12 or 3.11; where there is none, with one that uv fetches"
    run python3.12 -m venv venv
    return
  fi
  for python in python3.13 python3.12 python3.11; do
    if command -v "$python" >/dev/null && "$python" -m venv venv 2>/dev/null; then return; fi
  done
  # The images of TPU VMs come with Python 3.10.
  run python3 -m pip install --quiet --user uv
  run "$HOME/.local/bin/uv" venv --quiet --clear --seed --python 3.12 venv
}

install() {
  local package=$1 sum='' pip=(venv/bin/python -m pip install --quiet --disable-pip-version-check)
  if [[ -z $dry_run ]]; then
    [[ -f $package ]] || fail "$package is not in $PWD: copy it there first"
    sum=$(sha256sum "$package")
    if [[ $(cat venv/installed 2>/dev/null) == "$sum" ]]; then
      say "$package is installed already"
      return
    fi
  fi
  if [[ -z $dry_run ]] && supervisor >/dev/null; then
    fail "training runs here, with what is installed now: launch/tpu_vm.sh stop first"
  fi
  run rm -rf venv source
  make_venv
  if [[ $package == *.whl ]]; then
    run "${pip[@]}" "./${package}[tpu]"
  else
    run tar --extract --gzip --file="$package"
    run "${pip[@]}" --constraint=source/requirements.lock './source[tpu]'
  fi
  if [[ -z $dry_run ]]; then echo "$sum" >venv/installed; fi
}

# A save gets its name by renaming a folder: where that does not work, no checkpoint would be kept.
check_rename() {
  local probe
  probe=$(mktemp -d "$mount_point/.probe_XXXXXX")
  touch "$probe/file"
  if ! mv "$probe" "$probe.renamed"; then
    rm -rf "$probe"
    fail "$1 cannot rename a folder, which checkpoints need: use NFS, or a bucket made with \
--enable-hierarchical-namespace"
  fi
  rm -rf "$probe.renamed"
}

mount_share() {
  local source=$1
  run sudo mkdir -p "$mount_point"
  case $source in
    nfs://*)
      source=${source#nfs://}
      if [[ -n $dry_run ]] || ! command -v mount.nfs >/dev/null; then
        run sudo apt-get install --yes --quiet nfs-common
      fi
      if [[ -n $dry_run ]] || ! mountpoint --quiet "$mount_point"; then
        run sudo mount -t nfs "${source%%/*}:/${source#*/}" "$mount_point"
      fi
      if [[ -n $dry_run || ! -w $mount_point ]]; then run sudo chmod 777 "$mount_point"; fi
      ;;
    gs://*)
      if [[ -n $dry_run ]] || ! command -v gcsfuse >/dev/null; then install_gcsfuse; fi
      # Workers must see at once what another one wrote.
      if [[ -n $dry_run ]] || ! mountpoint --quiet "$mount_point"; then
        run sudo chmod 777 "$mount_point"
        run gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "${source#gs://}" "$mount_point"
      fi
      ;;
    *) fail "--mount=$source: expected nfs://HOST/SHARE or gs://BUCKET" ;;
  esac
  if [[ -z $dry_run ]]; then check_rename "$1"; fi
}

install_gcsfuse() {
  local key=https://packages.cloud.google.com/apt/doc/apt-key.gpg
  local keyring=/usr/share/keyrings/cloud.google.asc
  local release
  release=gcsfuse-jammy
  if [[ -z $dry_run ]]; then release=gcsfuse-$(lsb_release --codename --short); fi
  run sudo curl --silent --show-error --fail --output "$keyring" "$key"
  run sudo sh -c "echo 'deb [signed-by=$keyring] https://packages.cloud.google.com/apt $release main' \
>/etc/apt/sources.list.d/gcsfuse.list"
  run sudo apt-get update --quiet
  run sudo apt-get install --yes --quiet gcsfuse
}

setup() {
  local package='' store='' mount='' option
  for option in "$@"; do
    case $option in
      --package=*) package=${option#*=} ;;
      --store=*) store=${option#*=} ;;
      --mount=*) mount=${option#*=} ;;
      *) fail "setup: unknown option $option" ;;
    esac
  done
  [[ -n $package ]] || fail "setup: --package=FILE is missing"
  install "$package"
  if [[ -n $mount ]]; then mount_share "$mount"; fi
  if [[ -n $store ]]; then
    run mkdir -p store
    # rows/ is what runs write there; the bucket does not have it.
    run gcloud storage rsync "$store" store --recursive --delete-unmatched-destination-objects --exclude='^rows/.*'
  fi
  if [[ -z $dry_run ]]; then echo "$(hostname): set up"; fi
}

# The process id of the supervisor, if it is alive.
supervisor() {
  local pid
  pid=$(cat pid 2>/dev/null) || return 1
  grep --quiet supervise.sh "/proc/$pid/cmdline" 2>/dev/null || return 1
  echo "$pid"
}

start() {
  local command=(./supervise.sh venv/bin/python -m bertjax.train "$@") pid
  if [[ -n $dry_run ]]; then
    say "in the background, with its output in train.log"
    run env JAX_PLATFORMS=tpu,cpu "${command[@]}"
    return
  fi
  if pid=$(supervisor); then
    echo "$(hostname): running already, process $pid"
    return
  fi
  [[ -x venv/bin/python ]] || fail "nothing is installed in $PWD: run setup first"
  rm -f exit_code pid
  # With the platform named, JAX stops where it finds no TPU instead of training on the host's CPU.
  export JAX_PLATFORMS=${JAX_PLATFORMS-tpu,cpu}
  # shellcheck disable=SC2016  # expanded by the shell that it starts
  setsid nohup bash -c '"$@" & echo $! >pid; wait $!; echo $? >exit_code' bash "${command[@]}" \
    >>train.log 2>&1 </dev/null &
  local wait
  for wait in {1..100}; do
    if [[ -s pid ]]; then
      echo "$(hostname): started, process $(<pid)"
      return
    fi
    sleep 0.1
  done
  fail "no process after $((wait / 10)) s; is the disk of $PWD full or gone?"
}

status() {
  local pid
  if pid=$(supervisor); then
    echo "$(hostname): running, process $pid"
  elif [[ -s exit_code ]]; then
    echo "$(hostname): ended with exit code $(<exit_code)"
  else
    echo "$(hostname): not started"
  fi
}

stop() {
  local pid
  if pid=$(supervisor); then
    kill -TERM "$pid"
    while supervisor >/dev/null || [[ ! -s exit_code ]]; do sleep 0.5; done
  fi
  status
}

if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
case ${1:-} in
  setup | start) "$@" ;;
  status | stop) "$1" ;;
  log) exec tail --lines=100 -F train.log ;;
  -h | --help) usage ;;
  *) fail "expected setup, start, status, log or stop; found '${1:-}'" ;;
esac
