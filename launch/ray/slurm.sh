#!/usr/bin/env bash
# One prepared set on a Ray cluster of the nodes of a SLURM job, from a folder shared by all nodes
# (results and sources may be in a bucket: WORKDIR and data.sources are gs:// or s3:// URLs then):
#   sbatch --nodes=16 launch/ray/slurm.sh WORKDIR --config FILE [flags of `ttt-jax prepare`]
#   sbatch --nodes=4 --gpus-per-node=8 launch/ray/slurm.sh speech --config configs/ttt_3b.py
# To go on after a time limit, submit the same line again. launch/prepare_slurm.sh needs no Ray.
#
#SBATCH --job-name=ttt-ray
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive              # Ray takes whole nodes
#SBATCH --no-kill                # a lost node does not end the job: its work goes to the others
#SBATCH --requeue
#SBATCH --open-mode=append       # a requeued job appends to the same log
#SBATCH --output=%x-%j.log       # in the submission folder
set -euo pipefail
here=${SLURM_SUBMIT_DIR:-$PWD}   # SLURM runs a copy of this file elsewhere
if [ -z "${SLURM_JOB_ID:-}" ] || [ $# -lt 1 ]; then
  sed -n 2,5p "$0" >&2
  exit 2
fi
export PATH="$here/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
workdir=$1
shift

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | sed -n 1p)
address=$(getent hosts "${address:-$first}" | awk 'NR == 1 {print $1}')
port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 12000))
export RAY_ADDRESS="$address:$port"

# Ray's ports have no password: use it in a private network only.
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
srun --nodes=1 --ntasks=1 --overlap --nodelist="$first" ray start --head --block \
  --node-ip-address="$address" --port="$port" --num-cpus="$cpus" --include-dashboard=false &
for _ in $(seq 60); do
  ray status --address "$RAY_ADDRESS" >/dev/null 2>&1 && break
  sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --overlap --exclude="$first" --kill-on-bad-exit=0 \
    ray start --block --address="$RAY_ADDRESS" --num-cpus="$cpus" &
fi

code=0
ttt-jax prepare --workdir "$workdir" --config.data.runner=ray "$@" || code=$?
jobs -p | xargs -r kill 2>/dev/null || true   # the steps of `ray start`
wait || true
exit "$code"
