#!/usr/bin/env bash
# A run on Cloud TPU VMs through gcloud, one step at a time (--dry-run VERB prints its commands):
#   bash launch/tpu_vm.sh create                    ask for the TPU; comes when there is room
#   bash launch/tpu_vm.sh state                     whether it has come
#   bash launch/tpu_vm.sh mount SERVER:/SHARE       a folder that all hosts share (NFS) as runs/
#   bash launch/tpu_vm.sh copy                      this checkout, as last committed, to all hosts
#   bash launch/tpu_vm.sh install                   Python and packages, on all hosts
#   bash launch/tpu_vm.sh run runs/big [flags of `ttt-jax train`]      on all hosts, supervised
#   bash launch/tpu_vm.sh follow                    what the first host writes
#   bash launch/tpu_vm.sh status runs/big           ttt-jax status
#   bash launch/tpu_vm.sh stop                      save and leave; `run` goes on from there
#   bash launch/tpu_vm.sh delete                    give the TPU back: it costs until you do
set -euo pipefail

NAME=${NAME:-ttt}                   # of the TPU
ZONE=${ZONE:-us-east5-b}            # where there is quota
TYPE=${TYPE:-v6e-64}                # chips (v5p counts two cores per chip: v5p-128 has 64)
RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} # system image of that generation
SLICES=${SLICES:-1}                 # several are joined by the data-centre network: mesh.slices
SPOT=${SPOT:-1}                     # 1: cheaper, may be taken away; 0: stays until deleted

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
verb=${1:-}
[ $# -gt 0 ] && shift
cd "$(dirname "$0")/.."

gcloud() {  # every command goes through here
  if [ -n "$dry" ]; then
    local word line=gcloud
    for word in "$@"; do
      case "$word" in
        *[!a-zA-Z0-9_=.,:/~-]*) line+=" ${word@Q}" ;;
        *) line+=" $word" ;;
      esac
    done
    printf '%s\n' "$line"  # at once: slices print side by side
  else
    command gcloud "$@"
  fi
}

nodes() {  # names of the slices
  if [ "$SLICES" = 1 ]; then echo "$NAME"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi
}

on_all() {  # on_all COMMAND: on every host of every slice, all at the same time
  local node pids=() pid
  for node in $(nodes); do
    gcloud compute tpus tpu-vm ssh "$node" --zone="$ZONE" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
}

on_first() {
  gcloud compute tpus tpu-vm ssh "$(nodes | head -n 1)" --zone="$ZONE" --worker=0 --command="$1"
}

need() {  # need WHAT "$@": a word after the verb
  [ $# -gt 1 ] || { echo "tpu_vm.sh: $verb needs $1 behind it." >&2; exit 2; }
}

case "$verb" in
  create)
    flags=(--zone="$ZONE" --accelerator-type="$TYPE" --runtime-version="$RUNTIME")
    [ "$SPOT" = 1 ] && flags+=(--spot)
    if [ "$SLICES" = 1 ]; then flags+=(--node-id="$NAME")
    else flags+=(--node-prefix="$NAME" --node-count="$SLICES"); fi
    gcloud compute tpus queued-resources create "$NAME" "${flags[@]}" ;;
  state)
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
      --format='value(state.state)' ;;
  mount)
    need SERVER:/SHARE "$@"
    on_all "sudo apt-get install -y -q nfs-common && mkdir -p ttt_jax/runs && \
      sudo mount $(printf %q "$1") ttt_jax/runs && sudo chmod 777 ttt_jax/runs" ;;
  copy)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    for node in $(nodes); do
      gcloud compute tpus tpu-vm scp "$archive" "$node:ttt_jax.tar.gz" --zone="$ZONE" --worker=all
    done
    on_all 'mkdir -p ttt_jax && tar -xzf ttt_jax.tar.gz -C ttt_jax' ;;
  install)  # the image's own Python is too old; uv brings one
    on_all "cd ttt_jax && python3 -m pip install -q --user uv && \
      ~/.local/bin/uv venv -q --python 3.12 .venv && ~/.local/bin/uv pip install -q -e '.[tpu]'" ;;
  run)
    need WORKDIR "$@"
    workdir=$(printf %q "$1")
    shift
    words=
    [ $# -gt 0 ] && words=$(printf ' %q' "$@")
    # setsid: lives on when the connection ends. --log: all hosts write to the same folder.
    on_all "cd ttt_jax && source launch/xla_flags.sh && export PATH=\$PWD/.venv/bin:\$PATH && \
      { setsid nohup ttt-jax supervise --workdir $workdir --log \$(hostname) -- \
        ttt-jax train --workdir $workdir$words >run.log 2>&1 </dev/null & }" ;;
  follow)
    on_first "tail -n 50 -F ttt_jax/run.log" ;;
  status)
    need WORKDIR "$@"
    on_first "cd ttt_jax && .venv/bin/ttt-jax status --workdir $(printf %q "$1")" ;;
  stop)
    on_all "pkill -TERM -f 'ttt-jax [s]upervise' || true" ;;
  delete)  # --force: together with the machines
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet ;;
  *)
    sed -n 2,12p "$0" >&2
    exit 2 ;;
esac
