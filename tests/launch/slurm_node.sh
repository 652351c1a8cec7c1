#!/usr/bin/env bash
# A Slurm of this one machine: two CPUs, no accounting, everything in one folder.
set -euo pipefail

usage() {
  cat <<'END'
tests/launch/slurm_node.sh start|stop DIR

start  writes DIR/slurm.conf, starts munged, slurmctld and slurmd, and waits until the node is idle;
       then `export SLURM_CONF=DIR/slurm.conf` and use sbatch, squeue, scancel
stop   cancels the jobs and ends the three daemons

Needs root, and Debian's packages slurm-wlm and munge. DIR must be short (its socket has a limit of
107 characters) and empty.
END
}

fail() { echo "error: slurm_node.sh: $*" >&2; exit 2; }

case ${1:-} in -h | --help) usage; exit 0 ;; esac
(($# == 2)) || fail "expected start DIR or stop DIR; --help says more"
directory=$2
export SLURM_CONF=$directory/slurm.conf

start() {
  local name ports
  for name in munged slurmctld slurmd sbatch; do
    command -v "$name" >/dev/null || fail "$name is missing: apt-get install slurm-wlm munge"
  done
  ((EUID == 0)) || fail "slurmd needs root"
  mkdir -p "$directory"/{state,spool}
  head -c 1024 /dev/urandom >"$directory/munge.key"
  chmod 700 "$directory"
  chmod 600 "$directory/munge.key"
  name=$(hostname -s)
  # Two ports that are free now.
  ports=$(python3 -c '
import socket
sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*[s.getsockname()[1] for s in sockets])')
  cat >"$SLURM_CONF" <<END
ClusterName=one_node
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
AuthInfo=socket=$directory/munge.socket
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
NodeName=$name NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES
END
  munged --force --key-file="$directory/munge.key" --socket="$directory/munge.socket" \
    --pid-file="$directory/munged.pid" --log-file="$directory/munged.log" \
    --seed-file="$directory/munged.seed" 2>>"$directory/munged.err"
  slurmctld -c
  slurmd
  for _ in {1..60}; do
    if [[ $(sinfo --noheader --format=%t 2>/dev/null) == idle ]]; then return; fi
    sleep 0.5
  done
  echo "error: slurm_node.sh: the node did not become idle within 30 s; the logs are in $directory" >&2
  exit 1
}

stop() {
  local name pid
  scancel --user=root --quiet || true
  for name in slurmd slurmctld munged; do
    if [[ -f $directory/$name.pid ]]; then
      pid=$(<"$directory/$name.pid")
      kill "$pid" 2>/dev/null || true
      for _ in {1..100}; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
      done
    fi
  done
}

case $1 in
  start) start ;;
  stop) stop ;;
  *) fail "unknown command $1: start or stop" ;;
esac
