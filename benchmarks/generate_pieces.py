"""Seconds of the parts of one decode step, each compiled alone.

  trunk   the layers, over the window and the cached prefix
  head    logits of the positions that need a token, and the choices among them
  rest    windows, ranks and bookkeeping of the step, on the device

The rest of a step's time is launching, and the engine's work on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from ttt_jax.config import GenerateConfig
from ttt_jax.generate import decode_step, sampling, sampling_params
from ttt_jax.model import kv_cache


def measure(model, params, vocab, rows: int, known: int, wanted: int, tokens: int,
            repetitions: int, guidance: float = 0.0) -> dict[str, list[float]]:
  """Seconds of each part, ``repetitions`` times.

  Args:
    model, params, vocab: the decoder.
    rows: requests in the step.
    known: cached tokens of each.
    wanted: masks left in each request's block, or 0 for a text step.
    tokens: length of a cache's slot.
    repetitions: calls after the first.
    guidance: of spans; the unconditional pass is not timed.
  """
  width = 32 if wanted else 1
  rules = sampling.Rules(vocab)
  table = model.head_table(params)
  head = sampling.make_head(rules, table)
  config = GenerateConfig(block=26, min_span=27, max_span=27, guidance=guidance)
  settings = jax.tree.map(jnp.asarray, sampling_params.make([config] * rows, range(rows)))
  cache = jax.jit(kv_cache.empty, static_argnums=(0, 1, 2))(model.config, rows, tokens)
  state = _state(vocab, rows, known, wanted, tokens)
  slots = jnp.arange(rows, dtype=jnp.int32)
  token, position, k_end = jax.jit(decode_step.window, static_argnums=(1, 2))(state, rules, width)
  want = jax.jit(decode_step.wanted, static_argnums=1)(state, vocab, token, position)

  @jax.jit
  def trunk(params, cache):
    return model.extend(params, cache, slots, state.known, token, position, k_end)

  @jax.jit
  def choose(head, hidden):
    uncond = hidden[:, ::-1] if guidance else None
    return decode_step.score(rules, head, settings, state, hidden, uncond, position, want)

  @jax.jit
  def rest(state, choice):
    token, position, k_end = decode_step.window(state, rules, width)
    want = decode_step.wanted(state, vocab, token, position)
    return decode_step.advance(state, settings, rules, width, choice, want), k_end

  hidden = trunk(params, cache)[0]
  choice = choose(head, hidden)
  work = {'trunk': lambda: trunk(params, cache), 'head': lambda: choose(head, hidden),
          'rest': lambda: rest(state, choice)}
  out = {}
  for name, run in work.items():
    jax.block_until_ready(run())
    out[name] = [common.timed(lambda: jax.block_until_ready(run()))[1]['seconds']
                 for _ in range(repetitions)]
  return out


def _state(vocab, rows: int, known: int, wanted: int, tokens: int) -> decode_step.State:
  """Requests in the middle of an answer."""
  row = lambda value: jnp.full(rows, value, jnp.int32)
  ids = np.random.default_rng(0).integers(vocab.text_ranks, size=(rows, tokens + 128))
  state = decode_step.empty(rows, tokens + 128)
  state = state._replace(known=row(known), lead=row(1), prompt=row(1), calls=row(1))
  if not wanted:
    return state._replace(token=jnp.asarray(ids, jnp.int32), length=row(known + 1), gap=row(1),
                          phase=row(decode_step.TEXT), begin=row(-1))
  ids[:, known] = vocab.begin_of_audio
  ids[:, known + 1:known + 27] = vocab.code_start
  ids[:, known + 27 - wanted:known + 27] = vocab.mask
  return state._replace(
      token=jnp.asarray(ids, jnp.int32), length=row(known + 27), phase=row(decode_step.SPAN),
      begin=row(known), block_at=row(known + 1), step=row(0), spans=row(1), blocks=row(1))
