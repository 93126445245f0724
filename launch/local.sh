#!/usr/bin/env bash
# Several processes of one run on this machine, restarted until the run is done:
#   bash launch/local.sh PROCESSES WORKDIR [flags of `ttt-jax train`]
#   bash launch/local.sh 2 demo --devices 4      two processes of four virtual CPU devices each
#   bash launch/local.sh 2 export-hf demo --out demo/export    two processes that export; also import-hf
#   bash launch/local.sh 1 big --config configs/ttt_3b.py --config.hardware=h100-8    all GPUs of the host
# With GPUs, process I takes GPU I. One process for all GPUs of a machine (PROCESSES=1) is as fast
# and simpler; several are for testing how a run behaves on a cluster.
# Ctrl-C saves and stops the run; the same command resumes it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 2 ]; then
  sed -n 2,6p "$0" >&2
  exit 2
fi
processes=$1 verb=train
shift
if [ "$1" = import-hf ] || [ "$1" = export-hf ]; then
  verb=$1
  shift
fi
workdir=$1
shift
# shellcheck source=launch/xla_flags.sh
source "$here/xla_flags.sh"
export PATH="$here/../.venv/bin:$PATH"  # where `make` installs ttt-jax

# --workdir: a newer checkpoint there tells progress from a crash that repeats.
# --processes: how many; they connect through a free port of this machine.
exec ttt-jax supervise --workdir "$workdir" --processes "$processes" -- \
  ttt-jax "$verb" --workdir "$workdir" "$@"
