"""How fast packed rows are read, how full they are, and what that takes in memory.

  python -m benchmarks.loader --json loader.json   # 60 M tokens; about a minute
  python -m benchmarks.loader --quick              # seconds
  python -m benchmarks.loader --buckets            # from servers on loopback beside the disk

A prepared set of three splits in rows of 2,048 over 168,072 ids is made: 'asr' and 'tts' of 2 to
20 s of speech (12.5 codes and 3.3 text tokens a second, interleaved 13:26 under their system
prompts), 'chat' of 150 to 2,048 tokens. Random codes, so that the files are as hard to unpack
as real ones. The loader then gives batches of 32 rows: of one split and of a mixture, without and
with SST, read by 0, 2 and 4 threads, from memory and from a disk whose pages the system was told
to forget. One process on --cores cores; times are medians of --repetitions turns, in which the
cases follow one another. Peak memory is that of a fresh process which only reads, for the set
and for one of a quarter of its size. Aims: 97 % of the rows' tokens in use, a million tokens a
second, as much memory for the large set as for the small.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks import common  # noqa: E402

ROW_LENGTH, BATCH_ROWS = 2048, 32
FULL = 0.97          # of the rows' tokens
AIM = 1_000_000      # tokens a second, on two cores
SPLITS = ('asr', 'chat', 'tts')
MIX = {'asr': 2, 'tts': 1.5, 'chat': 1}
POOL = 500           # different documents per split; each comes back under other numbers
SECONDS, CODES = (2, 20), 12.5
CASES = {f'{name}, {"SST" if sst else "no SST"}, {threads} threads': (name, sst, threads)
         for name in ('one split', 'mix of 3') for sst in (0.0, 0.5) for threads in (0, 2, 4)}
COLD = {f'from disk: {case}': spec for case, spec in CASES.items() if spec[1] and spec[2] != 2}


# -- the set ----------------------------------------------------------------------------


def _pool(split: str, vocab, rng: np.random.Generator) -> list:
  """POOL rendered documents as the split has them."""
  from benchmarks import documents
  from ttt_jax.data import interleave
  if split == 'chat':
    sizes = documents.lengths('speech', POOL, ROW_LENGTH, rng)
    return [documents.document(i, 'audio_qa', int(n), vocab).example for i, n in enumerate(sizes)]
  words = documents.Words(vocab.text_ranks)
  renderer = interleave.Renderer(vocab, words)
  return [renderer.render(documents.record(split, round(CODES * seconds), 0, vocab, i))
          for i, seconds in enumerate(rng.uniform(*SECONDS, POOL))]


def make(folder: pathlib.Path, tokens: int) -> dict:
  """Write a prepared set of about ``tokens`` tokens in ``folder``; what the report says of it."""
  from benchmarks import documents
  from ttt_jax.data import packing, store
  from ttt_jax.tokens.batch import make_row
  vocab, rng = documents.VOCABULARIES['168k'], np.random.default_rng(0)
  folder.mkdir()
  entries, found, number = {}, {}, 1
  for split in SPLITS:
    pool = _pool(split, vocab, rng)
    sizes = np.array([len(example.token) for example in pool])
    chosen = rng.integers(POOL, size=max(1, round(tokens / len(SPLITS) / sizes.mean())))
    packed = packing.pack(sizes[chosen].tolist(), ROW_LENGTH)
    path = folder / f'{split}.arrayrecord'
    store.write_rows(path, (make_row(vocab, [(number + i, *pool[chosen[i]]) for i in row],
                                     ROW_LENGTH) for row in packed.rows))
    entries[split] = store.split_entry((path, len(packed.rows)))
    found[split] = {'documents': len(chosen), 'rows': len(packed.rows),
                    'mean_length': float(sizes[chosen].mean()), 'used': 1 - packed.padding,
                    'bytes': path.stat().st_size}
    number += len(chosen)
  store.write_manifest(folder, {
      'version': store.VERSION, 'vocabulary': vocab.to_dict(), 'fingerprint': vocab.fingerprint,
      'codec': 'codec', 'seq_len': ROW_LENGTH, 'max_document': number, 'splits': entries})
  return found


# -- the reader -------------------------------------------------------------------------


def forget(folder: pathlib.Path) -> bool:
  """Tell the system to drop a set's files from its page cache; False where it cannot."""
  if not hasattr(os, 'posix_fadvise'):
    return False
  os.sync()  # pages that are not on the disk yet would stay
  for path in folder.glob('*.arrayrecord'):
    with path.open('rb') as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  return True


class _Ranged:
  """In place of data.shards.Shards: array_record reads the bucket itself."""

  def __init__(self, folder, entries):
    self.paths = [str(folder / entry['name']) for entry in entries]

  def require(self, row: int) -> None:
    pass

  def lost(self, row: int) -> bool:
    return False

  def fetch_ahead(self, rows) -> None:
    pass


def serve(cores: int) -> None:
  """Answer 'read' requests: batches of one case, after a first one that is not counted."""
  common.stay_on(cores)
  from ttt_jax.config import DataConfig, Stage
  from ttt_jax.data import store
  from ttt_jax.data.loader import Loader

  def read(folder: str, name: str, sst: float, threads: int, batches: int, cold: bool,
           whole: bool = False, ranged: bool = False) -> dict:
    start = time.perf_counter()
    if ranged:
      store.Shards = _Ranged  # type: ignore[misc]
    stage = Stage('asr') if name == 'one split' else Stage(mix=MIX)
    loader = Loader(folder, DataConfig(stages=(stage,), sst=sst, threads=threads), BATCH_ROWS, 0,
                    store.vocabulary(folder))
    if cold and not forget(pathlib.Path(folder)):
      return {}
    used, padded = 0, 0
    if not cold and not whole:
      next(loader)  # opens the files and starts the threads
    def work():
      nonlocal used, padded
      for _ in range(batches):
        batch = next(loader)
        used += int(np.count_nonzero(batch.document))
        padded += batch.document.size
    _, took = common.timed(work)
    if whole:
      took['seconds'] = time.perf_counter() - start
    return {'tokens': padded, 'used': used, **took}

  common.serve({'read': read})


def measure(tokens: int, batches: int, repetitions: int, cores: int) -> dict:
  """Everything; the result is what --json gets."""
  with tempfile.TemporaryDirectory() as name:
    large, small = pathlib.Path(name) / 'large', pathlib.Path(name) / 'small'
    made, took = common.timed(lambda: make(large, tokens))
    result = {'machine': common.machine(cores), 'tokens': tokens,
              'seconds_to_make': took['seconds'], 'splits': made, 'cases': {}, 'peak_bytes': {}}
    make(small, tokens // 4)
    turns: dict[str, list] = {case: [] for case in (*CASES, *COLD)}
    with common.Side('benchmarks.loader', 'serve', str(cores), threads=cores) as side:
      for _ in range(repetitions):
        for case, (mix, sst, threads) in {**CASES, **COLD}.items():
          turns[case].append(side.ask(do='read', folder=str(large), name=mix, sst=sst,
                                      threads=threads, batches=batches, cold=case in COLD))
    for case, answers in turns.items():
      if all(answers):
        result['cases'][case] = {
            'tokens_per_second': common.median([a['tokens'] / a['seconds'] for a in answers]),
            'cpu_seconds': common.median([a['cpu_seconds'] for a in answers]),
            'used': answers[0]['used'] / answers[0]['tokens']}
    for size, folder in (('small', small), ('large', large)):
      with common.Side('benchmarks.loader', 'serve', str(cores), threads=cores) as side:
        def read(count: int) -> int:
          return side.ask(do='read', folder=str(folder), name='mix of 3', sst=0.5, threads=4,
                          batches=count, cold=False)['peak_bytes']
        result['peak_bytes'][size] = {'after 2 batches': read(1), 'after all': read(4 * batches)}
  return result


def measure_buckets(tokens: int, batches: int, repetitions: int, cores: int) -> dict:
  """Tokens per second from the local disk and from buckets on loopback, in turns.

  'first' is a machine without copies, from opening the set on: it fetches every file that its
  batches need. 'again' is a process that finds the copies. 'by range' is array_record's own reader
  of gs://, one request per row.
  """
  from tests.storage import servers
  turns: dict[str, list] = {}
  with contextlib.ExitStack() as stack:
    root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    made = make(root / 'set', tokens)
    running = [stack.enter_context(servers.gcs()), stack.enter_context(servers.s3())]
    for server in running:
      os.environ.update(server.environment)
    from ttt_jax.storage import remote
    for server in running:
      remote.upload_folder(root / 'set', f'{server.url}/set')
    def turn(case: str, folder: str, **more) -> None:
      with common.Side('benchmarks.loader', 'serve', str(cores), threads=cores) as side:
        turns.setdefault(case, []).append(side.ask(
            do='read', folder=folder, name='mix of 3', sst=0.5, threads=4, batches=batches,
            **{'cold': False, **more}))
    for number in range(repetitions):
      turn('local disk', str(root / 'set'))
      for server in running:
        os.environ['TTT_JAX_CACHE'] = str(root / f'cache-{server.scheme}-{number}')
        turn(f'{server.scheme}://, first', f'{server.url}/set', whole=True)
        turn(f'{server.scheme}://, again', f'{server.url}/set')
      turn('gs://, by range', f'{running[0].url}/set', ranged=True)
  speed = {case: common.median([a['tokens'] / a['seconds'] for a in answers])
           for case, answers in turns.items()}
  return {'machine': common.machine(cores), 'tokens': tokens, 'batches': batches,
          'bytes': sum(found['bytes'] for found in made.values()), 'cases': {
              case: {'tokens_per_second': value, 'of_local': value / speed['local disk']}
              for case, value in speed.items()}}


def report_buckets(result: dict) -> str:
  return common.table(('batches of 32 x 2,048', 'M tokens/s', 'of local'), [
      (case, f'{found["tokens_per_second"] / 1e6:.2f}', f'{found["of_local"]:.2f}')
      for case, found in result['cases'].items()])


def report(result: dict) -> str:
  rows = [(split, f'{found["documents"]:,}', f'{found["rows"]:,}', f'{found["mean_length"]:.0f}',
           f'{found["used"]:.2%}', f'{found["bytes"] / found["rows"] / ROW_LENGTH:.2f}')
          for split, found in result['splits'].items()]
  lines = [common.table(('split', 'documents', 'rows', 'mean', 'in use', 'bytes/token'), rows),
           f'aim: {FULL:.0%} in use', '']
  rows = [(case, f'{found["tokens_per_second"] / 1e6:.2f}',
           f'{found["tokens_per_second"] / AIM:.1f}', f'{found["used"]:.1%}')
          for case, found in result['cases'].items()]
  lines += [common.table(('batches of 32 x 2,048', 'M tokens/s', 'x aim', 'in use'), rows), '']
  for size, found in result['peak_bytes'].items():
    tokens = result['tokens'] // (1 if size == 'large' else 4)
    lines.append(f'peak memory, set of {tokens / 1e6:.0f} M tokens: ' + ', '.join(
        f'{count / 2**20:,.0f} MiB {when}' for when, count in found.items()))
  return '\n'.join(lines)


def main(words: list[str] | None = None) -> None:
  words = sys.argv[1:] if words is None else words
  if words[:1] == ['serve']:
    return serve(int(words[1]))
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='a million tokens, few batches')
  parser.add_argument('--tokens', type=int, default=60_000_000)
  parser.add_argument('--batches', type=int, default=80, help='per case and turn')
  parser.add_argument('--repetitions', type=int, default=3)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--buckets', action='store_true', help='from gs:// and s3:// servers on '
                      'loopback, beside the local disk')
  parser.add_argument('--json', metavar='FILE')
  args = parser.parse_args(words)
  if args.quick:
    args.tokens, args.batches, args.repetitions = 1_000_000, 4, 1
  run, shown = (measure_buckets, report_buckets) if args.buckets else (measure, report)
  result = run(args.tokens, args.batches, args.repetitions, args.cores)
  print(shown(result))
  if args.json:
    common.write_json(args.json, result)
  return None


if __name__ == '__main__':
  main()
