"""One process of several on this machine: python -m tests.one_process DATA PORT RANK OUT."""

import json
import pathlib
import sys
import time

import jax
import numpy as np
import optax

from tests import small_run
from ttt_jax.config import MeshConfig
from ttt_jax.data import loader, store
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.train import optimizer as optimizers, state as train_state, step as train_step


LIMIT = 900.0  # seconds; only turns a hang into a failure


def meet(folder: pathlib.Path, rank: int) -> None:
  """Wait until both processes are here, by files, so that no collective is part of the wait."""
  (folder / f'compiled-{rank}').touch()
  deadline = time.monotonic() + LIMIT
  while not (folder / f'compiled-{1 - rank}').exists():
    assert time.monotonic() < deadline, 'the other process has not compiled'
    time.sleep(0.05)


def main() -> None:
  data, port, rank, out = sys.argv[1:]
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(rank),
                             initialization_timeout=int(LIMIT))
  config = small_run.replace(small_run.config(), 'data', path=data)
  vocab = store.vocabulary(data)
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
  assert jax.process_count() == 2 and mesh.size == 8
  model = Model(config.model, vocab.size)
  optimizer = optimizers.make(config.optimizer, config.train.steps)
  batches = loader.Loader(data, config.data, config.train.batch_size, config.seed, vocab,
                          jax.process_index(), jax.process_count())
  with jax.set_mesh(mesh):
    state = train_state.init_sharded(model, optimizer, mesh, config.seed)
    batch = sharding.put_batch(mesh, batches.batch_at(0))

    def measure(params, batch):
      grads, sums = train_step.gradients(config, model, vocab, params, batch,
                                         train_step.run_key(0))
      return [sums.ar, sums.diffusion, sums.masked_nll], optax.tree.norm(grads)

    compiled = jax.jit(measure).lower(state.params, batch).compile()
    jax.block_until_ready((state, batch))
    # Gloo's reduce-scatter fails if one process arrives 30 s after the other, whatever the XLA
    # flags say (github.com/jax-ml/jax/issues/40831). Compilation takes longer than that on a busy
    # machine, so both processes compile before either executes.
    meet(pathlib.Path(out).parent, int(rank))
    sums, norm = compiled(state.params, batch)
  found = {'sums': np.asarray(sums).tolist(), 'grad_norm': float(norm)}
  pathlib.Path(out).write_text(json.dumps(found))


if __name__ == '__main__':
  main()
