# shellcheck shell=bash
# Compiler flags for real hardware; sourced by the other scripts. What you have set yourself comes
# last and wins. XLA refuses to start on a flag that it does not know: tests/launch/test_launch.py offers
# these to the installed versions. On a CPU they change nothing.

# GPUs, through XLA_FLAGS
gpu_flags=(
  --xla_gpu_enable_latency_hiding_scheduler=true     # gather weights while something else computes
  --xla_gpu_enable_while_loop_double_buffering=true  # also across layers, which are one loop
  --xla_gpu_all_gather_combine_threshold_bytes=134217728     # few large messages, not many small
  --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864  # the same for gradients
)

# TPUs, through LIBTPU_INIT_ARGS: only libtpu knows them
tpu_flags=(
  --xla_enable_async_all_gather=true                 # gathers start early and finish late ...
  --xla_tpu_enable_async_collective_fusion=true      # ... inside the matrix products ...
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  --xla_tpu_overlap_compute_collective_tc=true       # ... on the same core
  --xla_tpu_enable_data_parallel_all_reduce_opt=true      # gradients between slices travel while
  --xla_tpu_data_parallel_opt_different_sized_ops=true    # the backward pass goes on
)

export XLA_FLAGS="${gpu_flags[*]} ${XLA_FLAGS:-}"
export LIBTPU_INIT_ARGS="${tpu_flags[*]} ${LIBTPU_INIT_ARGS:-}"
# The rest of a GPU's memory is for NCCL and the driver; JAX takes 75 % unless told otherwise.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
