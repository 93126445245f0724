"""Staircase attention on NVIDIA GPUs by tokamax's kernels, with a key range per query.

tokamax's public function takes one range for all rows; the operations below it take
``Mask(k_start, k_end)`` per row, and those are used here. They are in a private module, so the
version is pinned exactly. From the sources of version 0.0.12:

  operation   GPUs                   forward                backward
  mosaic_gpu  Hopper, Blackwell;     O(T), skips blocks     O(T), computes every block
              bfloat16 or float16
  triton      Ampere and later       O(T), skips blocks     a boolean [B, T, S], every block
  xla         anything               O(T^2)                 O(T^2)

The operations do not define the output of a query with an empty range, and their backward pass
gives NaN for a block of such queries. So here these queries attend to one key, and their
output and its gradient are dropped.

B = rows, T = queries, S = keys, H/K = query/key heads, D = head dim.
"""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ttt_jax.errors import UserError
from ttt_jax.model.types import Array

TOKAMAX = '0.0.12'

# In order of preference; the first that supports the GPU and the dtype runs.
KERNELS = ('mosaic_gpu', 'triton')

_UNIT = 128  # the Mosaic kernels need lengths that are multiples of two blocks


def attend(q_BxTxHxD: jax.Array, k_BxSxKxD: jax.Array, v_BxSxKxD: jax.Array,
           k_start: Array, k_end: Array,
           operations: tuple[str, ...] = KERNELS) -> jax.Array:
  """softmax(q k / sqrt(D)) v over the keys k_start <= j < k_end of each query.

  Args:
    q_BxTxHxD, k_BxSxKxD, v_BxSxKxD: any T and S; H must be a multiple of K.
    k_start, k_end: int32 [B, T], key positions in 0..S.
    operations: names from the table above; the first that is implemented here runs.

  Returns:
    [B, T, H, D] in q's dtype; 0, with zero gradients, where the range is empty.

  Raises:
    UserError: tokamax is missing or another version, or nothing runs on this hardware.
  """
  _tokamax()
  t = q_BxTxHxD.shape[1]
  real = k_end > k_start
  # A query with an empty range attends to the first key of the last range before it, which adds
  # no key block to its own block.
  alone = jnp.minimum(lax.cummax(jnp.where(real, k_start, 0), axis=1), k_BxSxKxD.shape[1] - 1)
  k_start, k_end = jnp.where(real, k_start, alone), jnp.where(real, k_end, alone + 1)
  rest = -t % _UNIT
  k_start, k_end = (jnp.pad(x, ((0, 0), (0, rest)), mode='edge') for x in (k_start, k_end))
  out: jax.Array = _attend(_pad(q_BxTxHxD), _pad(k_BxSxKxD), _pad(v_BxSxKxD), k_start, k_end,
                           operations)
  return jnp.where(real[..., None, None], out[:, :t], 0)


def _pad(x):
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _UNIT), (0, 0), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, k_start, k_end, operations):
  return _forward(q, k, v, k_start, k_end, operations)[0]


def _attend_forward(q, k, v, k_start, k_end, operations):
  out, lse = _forward(q, k, v, k_start, k_end, operations)
  # Named, so that a remat policy can keep them: the backward pass then needs no second forward.
  out, lse = checkpoint_name(out, 'attention_out'), checkpoint_name(lse, 'attention_lse')
  return out, (q, k, v, k_start, k_end, out, lse)


def _attend_backward(operations, saved, d_out):
  q, k, v, k_start, k_end, out, lse = saved

  def run(operation):
    bound = operation.bind(q, k, v, mask=_mask(k_start, k_end))
    settings = {**bound.kwargs, 'return_residuals': False}
    gradient = operation.vjp or _tokamax().DotProductAttentionVjp()
    # The kernels expect a maximum m and a sum s of exp(score - m); (lse, 1) is an equal pair.
    return gradient((lse, jnp.ones_like(lse)), out, d_out.astype(q.dtype), *bound.args, **settings)

  d = _first_that_runs(operations, run)
  no_gradient = np.zeros(k_start.shape, jax.dtypes.float0)  # of integer inputs
  return d['q'], d['k'], d['v'], no_gradient, no_gradient


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(q, k, v, k_start, k_end, operations):
  """Output [B, T, H, D] and log-sum-exp, float32 [B, H, T]."""
  out, (top, total) = _first_that_runs(operations, lambda operation: operation(
      q, k, v, mask=_mask(k_start, k_end), return_residuals=True))
  return out, top + jnp.log(total)


def _mask(k_start, k_end):
  return _tokamax().Mask(k_start=k_start[:, None], k_end=k_end[:, None])


def _first_that_runs(operations, run):
  """run(operation) of the first operation that does not raise NotImplementedError."""
  from tokamax._src.ops.attention import api
  reasons = []
  for name in operations:
    if name not in api.IMPLEMENTATIONS:
      reasons.append(f'{name} does not import')
      continue
    try:
      return run(api.IMPLEMENTATIONS[name])
    except NotImplementedError as error:
      reasons.append(f'{name}: {error}')
  raise UserError("config key model.attention: tokamax has no kernel for this device and "
                  f"model.dtype ({'; '.join(reasons)}); use 'blockwise'.")


@functools.cache
def _tokamax():
  """tokamax's base module of attention; UserError unless the pinned version is installed."""
  try:
    version = importlib.metadata.version('tokamax')
  except importlib.metadata.PackageNotFoundError:
    version = None
  if version != TOKAMAX:
    found = f'version {version} is installed' if version else 'it is not installed'
    raise UserError(f"config key model.attention means tokamax here, and {found}: "
                    f"pip install tokamax=={TOKAMAX}, or use 'blockwise'.")
  from absl import flags
  from tokamax._src.ops.attention import base
  # tokamax's settings are absl flags. Reading one would parse sys.argv, which has our own flags,
  # unless the flags are marked as parsed; then they have their defaults.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return base
