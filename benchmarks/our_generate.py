"""Our side of benchmarks/generate.py: the engine that `ttt-jax generate` runs.

  python -m benchmarks.our_generate prepare FOLDER THREADS   writes FOLDER/weights.npz
  python -m benchmarks.our_generate serve FOLDER THREADS     answers on standard output

FOLDER/case.json   {'config', 'vocabulary', 'seed'}
FOLDER/weights.npz the parameters of both sides, by dotted name

Random weights do not generate the shape of a conversation. These do (``speaking``), by their
values alone: nothing is forced or biased at run time, on either side.
"""

import json
import pathlib
import sys
import time

import numpy as np

from benchmarks import common
from benchmarks.our_side import _flat, _nested

# Two channels of the residual stream that no layer writes to. One tells the class of the
# last id (text +, audio -): begin_of_audio's row of the head reads it, so it is the most
# likely id after text wherever it is allowed, and never in a span. The other is constant,
# and im_end's row reads it: it is never generated.
_CLASS, _CONSTANT = 0, 1
_LEVEL, _LOUD = 2.0, 30.0
_EMBEDDING = 0.15            # standard deviation of all other embeddings
_GAINS = {'q': 2.0, 'k': 2.0, 'gate': 1.5, 'up': 1.5}  # times the inverse root of the inputs


def speaking(model, vocab, seed: int) -> dict:
  """Random parameters whose greedy answers open a span whenever they may and never end.

  Gains are above those of a fresh model, so that few choices are near ties: see
  ``torch_generate.Trace``.
  """
  import jax
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    *_, module, kind = (entry.key for entry in path)
    noise = rng.standard_normal(leaf.shape, np.float32)
    if kind == 'scale':
      return 1 + 0.1 * noise
    if kind == 'bias':
      return 0.1 * noise
    if kind == 'kernel':
      noise *= _GAINS.get(module, 1.0) * leaf.shape[-2] ** -0.5
      if module in ('o', 'down'):
        noise[..., [_CLASS, _CONSTANT]] = 0
      return noise
    return _EMBEDDING * noise

  params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))
  table = params['trunk']['embedding']
  table[:, _CLASS] = np.where(vocab.is_audio(np.arange(len(table))), -_LEVEL, _LEVEL)
  table[:, _CONSTANT] = _LEVEL
  table[vocab.begin_of_audio, _CLASS] = _LOUD
  table[vocab.im_end, _CONSTANT] = -_LOUD
  params['trunk']['norm']['scale'][[_CLASS, _CONSTANT]] = 1
  return params


def prepare(folder: pathlib.Path) -> None:
  """Write the weights."""
  case, config, vocab, model = _case(folder)
  np.savez(folder / 'weights.npz', **_flat(speaking(model, vocab, case['seed'])))


def _case(folder: pathlib.Path):
  """(case, model config, vocabulary, model) of a folder."""
  from ttt_jax.config import ModelConfig, from_dict
  from ttt_jax.model.transformer import Model
  from ttt_jax.tokens.vocab import Vocabulary
  case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
  config, vocab = from_dict(ModelConfig, case['config']), Vocabulary(**case['vocabulary'])
  return case, config, vocab, Model(config, vocab.size)


class Ours:
  """The parameters, an engine, and the answers about them."""

  def __init__(self, folder: pathlib.Path):
    import jax
    from ttt_jax.generate.engine import Engine
    _, self.config, self.vocab, self.model = _case(folder)
    with np.load(folder / 'weights.npz') as flat:
      self.params = jax.device_put(_nested(flat))
    self.engine: Engine | None = None
    self.compiled = 0
    jax.monitoring.register_event_duration_secs_listener(self._count)

  def _count(self, event: str, *unused, **also_unused) -> None:
    # Fires for what comes from the cache on disk, too.
    self.compiled += event == '/jax/core/compile/backend_compile_duration'

  def start(self, **settings) -> dict:
    """A new engine in place of the old one.

    Args:
      settings: of GenerateConfig.
    """
    from ttt_jax.config import GenerateConfig
    from ttt_jax.generate.engine import Engine
    from ttt_jax.model import kv_cache
    self.engine = None  # its memory first
    config = GenerateConfig(**settings)
    self.engine = Engine(self.model, self.params, self.vocab, config)
    return {'cache_bytes': kv_cache.size_in_bytes(self.config, config.slots, config.max_tokens)}

  def answer(self, prompts: list[list[int]], turns: list[dict]) -> dict:
    """Answer prompts at the same time, turn by turn: a turn's prompt is all that came before.

    Args:
      prompts: ids.
      turns: settings of GenerateConfig per turn, for all prompts.

    Returns:
      ids: prompt and answers; seconds: of all; turns: per turn
        seconds: of all requests; first_audio: until the first audio of any of them;
        launches, compiled, calls: programs run, programs compiled, a request's steps;
        seconds_by_kind: {'text', 'audio'}, waited for each kind of event;
        spans: (seconds, tokens) of each audio event.
    """
    from ttt_jax.config import GenerateConfig
    engine = self.engine
    assert engine is not None, "'start' comes before 'answer'"
    out, clock = [], time.perf_counter()
    ids = [np.asarray(prompt, np.int32) for prompt in prompts]
    for settings in turns:
      config = GenerateConfig(**settings)
      launches, compiled, began = engine.launches, self.compiled, time.perf_counter()
      numbers = [engine.submit(prompt, config) for prompt in ids]
      waited, answers, last = {'text': 0.0, 'audio': 0.0}, {}, began
      spans, first = [], None
      for event in engine.events():
        now = time.perf_counter()
        if event.kind in waited:
          waited[event.kind] += now - last
        if event.kind == 'audio' and event.ids is not None:
          spans.append((now - last, event.ids.size))
          first = first or now - began
        if event.kind == 'done':
          answers[event.request] = event.answer
        last = now
      made = [answers[number] for number in numbers]
      ids = [np.concatenate([prompt, answer.ids]) for prompt, answer in zip(ids, made)]
      out.append({
          'seconds': time.perf_counter() - began, 'seconds_by_kind': waited, 'spans': spans,
          'first_audio': first,
          'launches': engine.launches - launches, 'compiled': self.compiled - compiled,
          'calls': made[0].calls})
    return {'ids': [x.tolist() for x in ids], 'seconds': time.perf_counter() - clock,
            'turns': out}


def main(words: list[str]) -> None:
  verb, folder, threads = words
  common.stay_on(int(threads))
  from ttt_jax.cli import main as cli
  cli._configure_process(None)  # as `ttt-jax generate` sets up its process
  if verb == 'prepare':
    prepare(pathlib.Path(folder))
    return
  import jax
  from ttt_jax.generate import engine  # noqa: F401
  imported = common.peak_bytes()
  ours = Ours(pathlib.Path(folder))
  from benchmarks import generate_pieces
  common.serve({
      'about': lambda: {'versions': f'jax {jax.__version__}', 'imported_bytes': imported},
      'start': ours.start,
      'answer': ours.answer,
      'pieces': lambda **how: generate_pieces.measure(
          ours.model, ours.params, ours.vocab, **how),
  })


if __name__ == '__main__':
  main(sys.argv[1:])
