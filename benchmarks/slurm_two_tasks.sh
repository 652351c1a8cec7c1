#!/usr/bin/env bash
# Records docs/launch/slurm_two_tasks.log: `tiny` under a Slurm of this machine, as two tasks,
# preempted once. As root, with Debian's slurm-wlm and munge: benchmarks/slurm_two_tasks.sh
set -euo pipefail
cd "$(dirname "$0")/.."

log=docs/launch/slurm_two_tasks.log
python=$PWD/.venv/bin/python
if [[ ! -x $python ]]; then python=$(command -v python); fi
folder=$(mktemp -d /tmp/slurmXXXX)
export SLURM_CONF=$folder/slurm.conf PYTHONPATH=$PWD JAX_PLATFORMS=cpu
PATH=$(dirname "$python"):$PATH
trap 'tests/launch/slurm_node.sh stop "$folder"; rm -rf "$folder"' EXIT
tests/launch/slurm_node.sh start "$folder"

submit=(sbatch --parsable --ntasks=2 "--output=$folder/job.log" launch/slurm.sbatch --config=tiny
  "--workdir=$folder/tiny" --config.num_steps=200 --config.checkpoint.every_steps=100
  --config.eval.every_steps=100 --config.log.every_steps=20)
job=$("${submit[@]}")
until grep --quiet --no-messages 'step 80/' "$folder/job.log"; do sleep 0.2; done
scancel --signal=TERM "$job"
until [[ $(squeue --noheader --format=%T --jobs="$job" 2>/dev/null) == '' ]]; do sleep 1; done

mkdir -p "$(dirname "$log")"
{
  echo "# ${submit[*]}"
  echo "# scancel --signal=TERM $job   (after step 80)"
  echo "# $(date -u +%Y-%m-%d), $(slurmctld -V), $("$python" -c 'import jax, platform
print("Python", platform.python_version(), "jax", jax.__version__)'), $(nproc) cores of$(
    grep --max-count=1 'model name' /proc/cpuinfo | cut -d: -f2), busy with other work"
  echo "# Paths and the host's name are shortened; nothing else is."
  cat "$folder/job.log"
} | sed -e "s#$folder#/shared#g" -e "s#$PWD/##g" -e "s#\b$(hostname -s)\b#node#g" \
  -e "s#(/[^ ]*lib/python3#(/usr/lib/python3#g" >"$log"
