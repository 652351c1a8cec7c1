#!/usr/bin/env bash
# Restarts a training command after a preemption, the loss of a process or a kill.
set -euo pipefail

usage() {
  cat <<'END'
launch/supervise.sh [options] [--] COMMAND...

Runs COMMAND and acts on how it ends:

  exit code
  0                    finished: ends with 0
  75, 128 and above    preempted, another process was lost, or killed by a signal: starts it again
  anything else        an error that would occur again: ends with that code

The supervisor passes SIGTERM or SIGINT to COMMAND as SIGTERM. COMMAND saves and is not started
again, and the supervisor ends with its exit code.

  --max_restarts=10    restarts in a row without a new checkpoint before it gives up and ends with 1;
                       checkpoints are looked for in the DIR of the command's --workdir=DIR, and
                       without that every restart counts; in gs://... by the python of the command,
                       if that is a python, else by the one in PATH
  --backoff_seconds=5  pause before a restart; doubles, up to 300, while no new checkpoint comes
  --dry-run            print the command and stop
END
}

say() { echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) supervise: $*" >&2; }
fail() { echo "error: supervise.sh: $*" >&2; exit 2; }

max_restarts=10
backoff_seconds=5
dry_run=
while (($#)); do
  case $1 in
    --max_restarts=*) max_restarts=${1#*=} ;;
    --backoff_seconds=*) backoff_seconds=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    -*) fail "unknown option $1; --help lists them, and the command comes after --" ;;
    *) break ;;
  esac
  shift
done
(($#)) || fail "no command to run; for example: supervise.sh python -m bertjax.train --config=base --workdir=DIR"
[[ $max_restarts =~ ^[0-9]+$ ]] || fail "--max_restarts=$max_restarts: not a whole number"
[[ $backoff_seconds =~ ^[0-9]+$ ]] || fail "--backoff_seconds=$backoff_seconds: not a whole number"

workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done

# The python that knows how to ask a bucket.
python=python
if [[ ${1##*/} == python* ]]; then python=$1; fi

# Sets `newest` to the name of the newest checkpoint; a save has its name only when it is whole.
newest=
look_for_checkpoint() {
  local folder found=
  if [[ $workdir == gs://* ]]; then
    found=$("$python" -m bertjax.newest_checkpoint "$workdir") || {
      say "the checkpoints in $workdir cannot be listed; the newest known is ${newest:-none}"
      return 0
    }
  elif [[ -n $workdir ]]; then
    for folder in "$workdir"/checkpoints/step_*; do
      if [[ -d $folder ]]; then found=${folder##*/}; fi
    done
  fi
  newest=$found
}

child=
stopping=
signalled=
on_signal() {
  stopping=1
  signalled=1
  say "told to stop"
  if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}

# Runs "$@" and sets `code` to its exit code.
run_child() {
  local again
  signalled=
  "$@" &
  child=$!
  # A signal between the two lines above found no child to pass it on to.
  if [[ -n $stopping ]]; then kill -TERM "$child" 2>/dev/null || true; fi
  code=0
  wait "$child" || code=$?
  # A signal to this shell cuts `wait` short; 127 says that the child was waited for already.
  while [[ -n $signalled ]]; do
    signalled=
    again=0
    wait "$child" || again=$?
    if ((again != 127)); then code=$again; fi
  done
  child=
}

line=$(printf ' %q' "$@")
line=${line# }
if [[ -n $dry_run ]]; then
  echo "$line"
  exit 0
fi
say "command: $line"
trap on_signal TERM INT

restarts=0 # since the last new checkpoint
pause=$backoff_seconds
while true; do
  look_for_checkpoint
  before=$newest
  run_child "$@"
  if ((code == 0)); then
    say "finished"
    exit 0
  elif [[ -n $stopping ]]; then
    say "stopped with exit code $code"
    exit "$code"
  elif ((code != 75 && code < 128)); then
    say "exit code $code: not started again"
    exit "$code"
  fi
  look_for_checkpoint
  if [[ $newest != "$before" ]]; then
    restarts=0
    pause=$backoff_seconds
  fi
  restarts=$((restarts + 1))
  if ((restarts > max_restarts)); then
    say "exit code $code: gave up after $max_restarts restarts without a new checkpoint"
    exit 1
  fi
  say "exit code $code: starting again in $pause s, from ${newest:-the beginning}" \
    "(restart $restarts of at most $max_restarts from there)"
  sleep "$pause" &
  sleeper=$!
  wait "$sleeper" || kill "$sleeper" 2>/dev/null || true
  if [[ -n $stopping ]]; then
    say "stopped with exit code $code"
    exit "$code"
  fi
  pause=$((pause * 2 < 300 ? pause * 2 : 300))
done
