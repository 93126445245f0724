# shellcheck shell=bash
# Compiler flags for accelerators; sourced by the other scripts. Flags that are already set come last
# and take precedence. XLA rejects unknown flags at start, so tests/launch/test_launch.py tries these
# with the installed versions. On a CPU they change nothing.

# GPUs, through XLA_FLAGS
gpu_flags=(
  --xla_gpu_enable_latency_hiding_scheduler=true     # gather weights during computation
  --xla_gpu_enable_while_loop_double_buffering=true  # also across layers, which are one loop
  --xla_gpu_all_gather_combine_threshold_bytes=134217728     # few large messages
  --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864  # the same for gradients
)

# TPUs, through LIBTPU_INIT_ARGS: only libtpu knows them
tpu_flags=(
  --xla_enable_async_all_gather=true                 # overlap gathers ...
  --xla_tpu_enable_async_collective_fusion=true      # ... with matrix products ...
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  --xla_tpu_overlap_compute_collective_tc=true       # ... on the same core
  --xla_tpu_enable_data_parallel_all_reduce_opt=true      # overlap the reduction of gradients
  --xla_tpu_data_parallel_opt_different_sized_ops=true    # between slices with the backward pass
)

export XLA_FLAGS="${gpu_flags[*]} ${XLA_FLAGS:-}"
export LIBTPU_INIT_ARGS="${tpu_flags[*]} ${LIBTPU_INIT_ARGS:-}"
# The rest of a GPU's memory is for NCCL and the driver; JAX's default is 75 %.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
