#!/usr/bin/env bash
# A run on Cloud TPU VMs through gcloud, one step at a time (--dry-run VERB prints its commands):
#   bash launch/tpu_vm.sh create                    request the TPU; it is created when capacity is free
#   bash launch/tpu_vm.sh state                     state of the request
#   bash launch/tpu_vm.sh mount SERVER:/SHARE       mount a shared folder (NFS) as runs/; not needed
#                                                   for a WORKDIR at gs://BUCKET/NAME
#   bash launch/tpu_vm.sh copy                      copy the last commit of this checkout to all hosts
#   bash launch/tpu_vm.sh install                   install Python and packages on all hosts
#   bash launch/tpu_vm.sh run runs/big [flags of `ttt-jax train`]      train on all hosts, supervised
#   bash launch/tpu_vm.sh import-hf runs/big --hf DIR [more flags]     also export-hf: on all hosts together
#   bash launch/tpu_vm.sh prepare runs/big [flags of `ttt-jax prepare`]  prepare one set on all hosts
#   bash launch/tpu_vm.sh follow                    show the log of the first host
#   bash launch/tpu_vm.sh status runs/big           ttt-jax status
#   bash launch/tpu_vm.sh stop                      save and stop; `run` resumes
#   bash launch/tpu_vm.sh delete                    delete the TPU, which is billed until then
set -euo pipefail

NAME=${NAME:-ttt}                   # of the TPU
ZONE=${ZONE:-us-east5-b}            # where you have quota
TYPE=${TYPE:-v6e-64}                # chips (v5p counts two cores per chip: v5p-128 has 64)
RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} # system image of that generation
SLICES=${SLICES:-1}                 # joined by the data-centre network: mesh.slices
CHIPS=${CHIPS:-2,2,1}               # of a host, as bounds, for `prepare`
SPOT=${SPOT:-1}                     # 1: cheaper, can be preempted; 0: stays until deleted

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
verb=${1:-}
[ $# -gt 0 ] && shift
cd "$(dirname "$0")/.."

gcloud() {  # runs gcloud, or prints the command with --dry-run
  if [ -n "$dry" ]; then
    local word line=gcloud
    for word in "$@"; do
      case "$word" in
        *[!a-zA-Z0-9_=.,:/~-]*) line+=" ${word@Q}" ;;
        *) line+=" $word" ;;
      esac
    done
    printf '%s\n' "$line"  # in one write, because slices print concurrently
  else
    command gcloud "$@"
  fi
}

nodes() {  # names of the slices
  if [ "$SLICES" = 1 ]; then echo "$NAME"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi
}

on_all() {  # on_all COMMAND: run it on every host of every slice, concurrently
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

need() {  # need WHAT "$@": requires an argument after the verb
  [ $# -gt 1 ] || { echo "tpu_vm.sh: $verb needs the argument $1." >&2; exit 2; }
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
  install)  # the image's Python is too old; uv installs one
    on_all "cd ttt_jax && python3 -m pip install -q --user uv && \
      ~/.local/bin/uv venv -q --python 3.12 .venv && ~/.local/bin/uv pip install -q -e '.[tpu,gcs]'" ;;
  run|import-hf|export-hf)
    need WORKDIR "$@"
    command=$verb
    [ "$verb" = run ] && command=train
    workdir=$(printf %q "$1")
    shift
    words=
    [ $# -gt 0 ] && words=$(printf ' %q' "$@")
    # setsid: survives the end of the connection. --log: all hosts write to the same folder.
    on_all "cd ttt_jax && source launch/xla_flags.sh && export PATH=\$PWD/.venv/bin:\$PATH && \
      { setsid nohup ttt-jax supervise --workdir $workdir --log \$(hostname) -- \
        ttt-jax $command --workdir $workdir$words >run.log 2>&1 </dev/null & }" ;;
  prepare)
    need WORKDIR "$@"
    workdir=$(printf %q "$1")
    shift
    words=
    [ $# -gt 0 ] && words=$(printf ' %q' "$@")
    attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
    slice=0
    # The bounds let every host use its own chips alone, for codecs that run on them.
    for node in $(nodes); do
      gcloud compute tpus tpu-vm ssh "$node" --zone="$ZONE" --worker=all --command="\
        cd ttt_jax && export PATH=\$PWD/.venv/bin:\$PATH && \
        ask() { curl -sf -H Metadata-Flavor:Google $attributes/\$1; } && \
        hosts=\$(ask worker-network-endpoints | tr , '\n' | grep -c .) && \
        worker=\$(($slice * hosts + \$(ask agent-worker-number))) && \
        export TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=$CHIPS CLOUD_TPU_TASK_ID=0 && \
        { setsid nohup ttt-jax prepare --workdir $workdir \
          --worker \$worker/\$((hosts * $SLICES))$words >run.log 2>&1 </dev/null & }" &
      slice=$((slice + 1))
    done
    wait ;;
  follow)
    on_first "tail -n 50 -F ttt_jax/run.log" ;;
  status)
    need WORKDIR "$@"
    on_first "cd ttt_jax && .venv/bin/ttt-jax status --workdir $(printf %q "$1")" ;;
  stop)
    on_all "pkill -TERM -f 'ttt-jax ([s]upervise|[p]repare)' || true" ;;
  delete)  # --force: includes the VMs
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet ;;
  *)
    sed -n 2,15p "$0" >&2
    exit 2 ;;
esac
