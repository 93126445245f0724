#!/usr/bin/env bash
# Several processes of one run on this machine, started again until the run is done:
#   bash launch/local.sh PROCESSES WORKDIR [flags of `ttt-jax train`]
#   bash launch/local.sh 2 demo --devices 4      two processes of four virtual CPU devices each
#   bash launch/local.sh 8 big --config configs/ttt_3b.py --config.hardware=h100-8    one per GPU
# Where there are GPUs, process I takes GPU I. One process for all GPUs of a machine is as fast
# and simpler (PROCESSES=1); several are for trying out what happens on a cluster.
# Stop with Ctrl-C: the run saves and leaves; the same command goes on from there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 2 ]; then
  sed -n 2,5p "$0" >&2
  exit 2
fi
processes=$1 workdir=$2
shift 2
# shellcheck source=launch/xla_flags.sh
source "$here/xla_flags.sh"
export PATH="$here/../.venv/bin:$PATH"  # where `make` installed ttt-jax; another one will do

# --workdir: its newest checkpoint tells progress from a crash that repeats itself.
# --processes: how many; they meet at a free port of this machine.
exec ttt-jax supervise --workdir "$workdir" --processes "$processes" -- \
  ttt-jax train --workdir "$workdir" "$@"
