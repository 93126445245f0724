#!/usr/bin/env bash
# One run on SLURM, from a folder shared by all nodes; a preempted or timed-out job is requeued:
#   sbatch --nodes=2 --time=4:00:00 launch/slurm.sh WORKDIR [flags of `ttt-jax train`]
#   sbatch --gpus-per-node=8 --nodes=4 launch/slurm.sh big --config configs/ttt_3b.py
#   sbatch --nodes=4 launch/slurm.sh export-hf WORKDIR --out DIR [more flags]      also import-hf
# Flags of sbatch on the command line take precedence over those below. `ttt-jax sweep --launcher slurm`
# submits this file as an array (launch/slurm.sh sweep FLAGS: one member per array task).
#
#SBATCH --job-name=ttt-jax
#SBATCH --ntasks-per-node=1      # one process drives all GPUs of its node
#SBATCH --signal=TERM@120        # two minutes before the time limit: save and exit with 77
#SBATCH --requeue                # allows SLURM and this script to queue the job again
#SBATCH --open-mode=append       # a requeued job appends to the same log
#SBATCH --output=%x-%j.log       # in the submission folder
set -euo pipefail
here=${SLURM_SUBMIT_DIR:-$PWD}   # SLURM runs a copy of this file elsewhere
if [ -z "${SLURM_JOB_ID:-}" ] || [ $# -lt 1 ]; then
  sed -n 2,6p "$0" >&2
  exit 2
fi
if [ -f "$here/launch/xla_flags.sh" ]; then
  # shellcheck source=launch/xla_flags.sh
  source "$here/launch/xla_flags.sh"
fi
export PATH="$here/.venv/bin:$PATH"
max_requeues=${REQUEUES:-100}    # so that a job without progress ends

if [ "$1" = sweep ]; then
  shift
  command=(ttt-jax sweep --member "$SLURM_ARRAY_TASK_ID" "$@")
else
  verb=train
  if [ "$1" = import-hf ] || [ "$1" = export-hf ]; then
    verb=$1
    shift
  fi
  workdir=$1
  shift
  command=(ttt-jax supervise --workdir "$workdir" -- ttt-jax "$verb" --workdir "$workdir" "$@")
fi

# The address of the first node, because names do not resolve everywhere. The port is below the
# ephemeral ports and differs between jobs and between starts of a job.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | sed -n 1p)
port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 12000))
export JAX_COORDINATOR_ADDRESS="${address:-$first}:$port"

# --kill-on-bad-exit=0: a process that exits with 77 must not end another one that is still saving.
# --wait=300: but the others end at most five minutes after it.
code=0
srun --kill-on-bad-exit=0 --wait=300 "${command[@]}" || code=$?

# 77: preempted after saving. Above 128: killed by a signal, as when a node fails.
if { [ "$code" = 77 ] || [ "$code" -gt 128 ]; } && [ "$code" != 130 ] &&
   [ "${SLURM_RESTART_COUNT:-0}" -lt "$max_requeues" ]; then
  echo "slurm.sh: exit code $code at start $((${SLURM_RESTART_COUNT:-0} + 1)); requeueing."
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  fi
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
