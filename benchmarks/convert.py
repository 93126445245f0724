"""Weights in and out at full size: random bfloat16 weights, import, a training step, export.

  python -m benchmarks.convert --sizes 0.5b,1.5b --json convert.json
  python -m benchmarks.convert --sizes 0.5b --processes 1,2 --stages import,export

Nothing is downloaded: a directory of the size of Qwen2.5-0.5B or -1.5B (151,936 rows, so that the
import has to add the audio vocabulary) is filled with noise, beside a tokenizer of 151,643
tokens and a few rows of made-up conversations. Every stage is a process of its own that runs
the command a user would; its time includes starting Python, and its peak memory is its own.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import common
from ttt_jax.storage import files

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = {'0.5b': 'ttt_0p5b', '1.5b': 'ttt_1p5b', 'tiny': 'ttt_0p5b'}
ROWS = 151_936     # of Qwen2.5's embedding table, up to 3B
LENGTH = 128       # tokens of a row
STAGES = ('import', 'step', 'export')


def settings(size: str, folder: pathlib.Path) -> dict[str, str]:
  """Overrides of the shipped config: one short row; the larger one with adapters, since AdamW on
  all of it would take some 40 GB."""
  out = {'data.seq_len': LENGTH, 'data.path': folder / 'data', 'data.sources': '()',
         'vocab.tokenizer': folder / 'tokenizer.json', 'model.dtype': 'float32',
         'train.steps': 1, 'train.batch_size': 1, 'train.tensorboard': False}
  if size == '1.5b':
    out['model.lora.rank'] = 16
  if size == 'tiny':
    out |= {
        'model.num_layers': 2,
        'model.hidden_size': 32,
        'model.num_attention_heads': 4,
        'model.head_dim': 8,
        'model.intermediate_size': 64
    }
  return {key: str(value) for key, value in out.items()}


def make_inputs(size: str, folder: pathlib.Path) -> None:
  """FOLDER/config.json, hf/, tokenizer.json and data/."""
  from ttt_jax import config as config_lib
  config = config_lib.load(ROOT / 'configs' / f'{SIZES[size]}.py', settings(size, folder))
  config_lib.save(config, folder)
  _tokenizer(folder / 'tokenizer.json')
  _data(folder / 'data')
  _weights(folder / 'hf', config)


def _tokenizer(path: pathlib.Path) -> None:
  """A byte-level BPE with as many tokens as Qwen2.5's, of which only the bytes are used."""
  from tokenizers import pre_tokenizers
  from ttt_jax.tokens.vocab import QWEN_TEXT_RANKS
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  words = letters + [f'word{number}' for number in range(QWEN_TEXT_RANKS - len(letters))]
  level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False,
           'use_regex': True}
  path.write_text(json.dumps({
      'version': '1.0', 'added_tokens': [], 'normalizer': None, 'post_processor': None,
      'pre_tokenizer': level, 'decoder': level, 'model': {
          'type': 'BPE', 'vocab': {word: number for number, word in enumerate(words)},
          'merges': []}}), encoding='utf-8')


def _data(folder: pathlib.Path) -> None:
  """A prepared set of 168,072 ids: a codec of noise, and rows of it."""
  from benchmarks import documents
  from ttt_jax.audio.mel_codec import MelCodec
  from ttt_jax.data import store
  from ttt_jax.tokens.batch import make_row
  from ttt_jax.tokens.vocab import GLM4_CODEBOOK_SIZE, QWEN_TEXT_RANKS, Vocabulary
  rng = np.random.default_rng(0)
  codec = MelCodec(rng.standard_normal((1, GLM4_CODEBOOK_SIZE, 80)).astype(np.float32), 1, 0.0)
  codec.save(folder / 'codec')
  vocab = Vocabulary('qwen2.5', QWEN_TEXT_RANKS, codec.name, codec.codebook_size)
  made = [documents.document(number, 'tts', LENGTH, vocab) for number in range(1, 5)]
  path = folder / 'train.arrayrecord'
  count = store.write_rows(path, (
      make_row(vocab, [(one.number, *one.example)], LENGTH) for one in made))
  tokens = {'text': 0, 'audio': 0, 'padding': 0, 'supervised': 0}
  store.write_manifest(folder, {
      'version': store.VERSION, 'vocabulary': vocab.to_dict(), 'fingerprint': vocab.fingerprint,
      'codec': 'codec', 'seq_len': LENGTH, 'max_document': count, 'heldout_overlap': 0,
      'splits': {'train': {**store.split_entry((path, count)), 'documents': count,
                           'tokens': tokens, 'padding': 0.0,
                           'tasks': {}}}})


def _weights(folder: pathlib.Path, config: Any) -> None:
  """A directory as Qwen2.5's: bfloat16, files of at most 5 GB."""
  import ml_dtypes
  from ttt_jax.hf import qwen_config, tensor_names
  from ttt_jax.model.transformer import Model
  from ttt_jax.storage import safetensors_io
  folder.mkdir()
  plan = tensor_names.tensors(Model(config.model, ROWS))
  values = {theirs: getattr(config.model, ours) for ours, theirs in qwen_config.KEYS.items()}
  (folder / 'config.json').write_text(json.dumps(values | {
      'architectures': ['Qwen2ForCausalLM'], 'model_type': 'qwen2', 'vocab_size': ROWS,
      'hidden_act': 'silu', 'torch_dtype': 'bfloat16'}))
  rng = np.random.default_rng(0)
  bfloat16 = np.dtype(ml_dtypes.bfloat16)
  def noise(name: str) -> np.ndarray:
    value = rng.standard_normal(plan[name].shape, dtype=np.float32)
    value *= 0.02
    value += 'norm' in name
    return value.astype(bfloat16)
  safetensors_io.Writer(folder, (safetensors_io.Plan(name, tensor.shape, bfloat16)
                          for name, tensor in plan.items()), 5 * 10**9).write(noise)


def words_of(stage: str, folder: pathlib.Path) -> list[str]:
  """The command line of a stage."""
  run = ['--workdir', str(folder / 'run')]
  return {'import': ['import-hf', '--hf', str(folder / 'hf'), '--config',
                     str(folder / 'config.json'), *run],
          'step': ['train', *run],
          'export': ['export-hf', '--out', str(folder / 'out'), *run]}[stage]


def run_stage(stage: str, folder: pathlib.Path, processes: int = 1) -> dict[str, float]:
  """Processes of `ttt-jax`; seconds from their start to the end of the last, and the highest of
  their peaks of memory in bytes."""
  code = ('import sys\nfrom ttt_jax.cli import main as cli\ncode = cli.main(sys.argv[1:])\n'
          'from benchmarks import common\nprint("PEAK", common.peak_bytes())\nsys.exit(code)')
  command = [sys.executable, '-c', code, *words_of(stage, folder)]
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  several = [['--processes', str(processes), '--process', str(number), '--coordinator',
              f'127.0.0.1:{port}'] if processes > 1 else [] for number in range(processes)]
  def run() -> list[tuple[int, str]]:
    started = [subprocess.Popen([*command, *words], cwd=ROOT,
                                env=os.environ | {'PYTHONPATH': str(ROOT)}, text=True,
                                stdout=subprocess.PIPE) for words in several]
    return [(one.returncode, said) for one in started for said in [one.communicate()[0]]]
  done, spent = common.timed(run)
  for code, _ in done:
    if code:
      raise SystemExit(f'{stage} ended with code {code}.')
  peaks = [int(line.split()[1]) for _, said in done for line in said.splitlines()
           if line.startswith('PEAK')]
  assert len(peaks) == processes, peaks
  return {'seconds': spent['seconds'], 'peak_bytes': max(peaks)}


def measure(size: str, parent: pathlib.Path, stages: Sequence[str], counts: Sequence[int]
            ) -> dict[str, Any]:
  """Stages of one size, in a folder that is removed afterwards.

  Args:
    size: of SIZES.
    parent: where the folder is made.
    stages: of STAGES.
    counts: of processes that import and export, one after the other; the files must be the same.
  """
  folder = pathlib.Path(tempfile.mkdtemp(prefix=f'convert-{size}-', dir=parent))
  try:
    # The inputs in a process of their own: this one must stay small.
    subprocess.run([sys.executable, '-m', 'benchmarks.convert', '--make', str(folder), '--sizes',
                    size], cwd=ROOT, check=True)
    found: dict[str, Any] = {}
    sums: set[str] = set()
    for count in counts:
      shutil.rmtree(folder / 'run', ignore_errors=True)
      for stage in stages:
        several = count if stage != 'step' else 1
        name = stage if several == 1 else f'{stage}, {several} processes'
        found[name] = run_stage(stage, folder, several)
        print(f'{size} {name}: {found[name]["seconds"]:.1f} s, '
              f'{found[name]["peak_bytes"] / 1e9:.2f} GB', flush=True)
      if 'export' in stages:
        sums.add(json.dumps({path.name: files.sha256(path) for path in sorted(
            (folder / 'out').glob('model*.safetensors'))}))
        facts = json.loads((folder / 'out' / 'training.json').read_text())
        assert facts['step'] == int('step' in stages), facts['step']
        found['parameters'] = facts['parameters']
        shutil.rmtree(folder / 'out')
    assert len(sums) < 2, 'exports of several processes differ'
    return found
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=common.description(__doc__), allow_abbrev=False)
  parser.add_argument('--sizes', default='0.5b,1.5b', help='of ' + ', '.join(SIZES))
  parser.add_argument('--folder', default='.', help='where there are 25 GB of disk')
  parser.add_argument('--stages', default=','.join(STAGES), help='in their order')
  parser.add_argument('--processes', default='1', help='that import and export: 1,2')
  parser.add_argument('--threads', type=int, default=2, help='cores')
  parser.add_argument('--json', metavar='FILE', help='also write the result here')
  parser.add_argument('--make', metavar='DIR', help=argparse.SUPPRESS)
  args = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  common.stay_on(args.threads)
  if args.make:
    return make_inputs(args.sizes, pathlib.Path(args.make))
  found = {size: measure(size, pathlib.Path(args.folder), args.stages.split(','),
                         [int(count) for count in args.processes.split(',')])
           for size in args.sizes.split(',')}
  print(common.table(('size, stage', 'seconds', 'peak GB'), [
      (f'{size} {stage}', f'{one["seconds"]:.1f}', f'{one["peak_bytes"] / 1e9:.2f}')
      for size in found for stage, one in found[size].items() if isinstance(one, dict)]))
  if args.json:
    common.write_json(args.json, {'machine': common.machine(args.threads), 'sizes': found})
  return None


if __name__ == '__main__':
  main()
