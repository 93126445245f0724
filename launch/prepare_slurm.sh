#!/usr/bin/env bash
# One prepared set by an array of SLURM tasks, from a folder shared by all nodes:
#   sbatch --array=0-31 --cpus-per-task=32 launch/prepare_slurm.sh WORKDIR --config FILE [flags of `ttt-jax prepare`]
#   sbatch --array=0-7 --gpus-per-node=1 launch/prepare_slurm.sh speech --config configs/ttt_3b.py
# Task K of N computes its share of the jobs and helps the others; tasks may start late or be lost.
# All end with 0 when the set is complete. To go on after a time limit, submit the same line again.
#
#SBATCH --job-name=ttt-prepare
#SBATCH --ntasks=1
#SBATCH --requeue                # a task whose node was lost starts again
#SBATCH --open-mode=append       # a requeued task appends to the same log
#SBATCH --output=%x-%A-%a.log    # in the submission folder
set -euo pipefail
here=${SLURM_SUBMIT_DIR:-$PWD}   # SLURM runs a copy of this file elsewhere
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || [ $# -lt 1 ]; then
  sed -n 2,4p "$0" >&2
  exit 2
fi
if [ "${SLURM_ARRAY_TASK_MIN:-0}" != 0 ] ||
   [ "$SLURM_ARRAY_TASK_MAX" != $((SLURM_ARRAY_TASK_COUNT - 1)) ]; then
  echo "prepare_slurm.sh: number the tasks from 0 without gaps, as in --array=0-31." >&2
  exit 2
fi
export PATH="$here/.venv/bin:$PATH"
workdir=$1
shift
exec ttt-jax prepare --workdir "$workdir" --worker "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
