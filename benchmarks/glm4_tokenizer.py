"""Encoding speech with GLM-4-Voice's tokenizer: the published way in PyTorch against ours.

  python benchmarks/glm4_tokenizer.py --json glm4.json   # the real size; about 5 minutes
  python benchmarks/glm4_tokenizer.py --quick            # a small one, half a minute

Both sides read the same safetensors (the published layout, random numbers) and the same 16 kHz
segments, and give tokens; log-mel is part of the time. They must agree in 97 % of the tokens
(random codes leave near-ties) before any time counts. Two kinds of segments:

  long    30 s, as a long recording is cut: no padding on either side
  speech  utterances of 2 to 13 s; PyTorch encodes them in batches of --batch, padded to the
          longest as the published script does, and also one by one

Sides take turns, each in a process of its own with --threads cores; each turn encodes all
segments of a case, after one that is not timed: all of it where programs are compiled, a
short segment for PyTorch. Times are medians; what is counted is seconds of speech per second.
"""

import argparse
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks import common  # noqa: E402

AGREE = 0.97
AIM = 1.0    # ours / the faster torch
RATE = 16_000
WARM = 'warm'
SMALL = {'num_mel_bins': 128, 'd_model': 128, 'encoder_attention_heads': 4,
         'encoder_ffn_dim': 512, 'quantize_position': 2, 'max_source_positions': 1500,
         'quantize_causal_block_size': 200, 'quantize_vocab_size': 512}
PUBLISHED = {'num_mel_bins': 128, 'd_model': 1280, 'encoder_attention_heads': 20,
             'encoder_ffn_dim': 5120, 'quantize_position': 16, 'max_source_positions': 1500,
             'quantize_causal_block_size': 200, 'quantize_vocab_size': 16_384}


class Disagreement(RuntimeError):
  """The sides give different tokens, so their times are not comparable."""


# -- what both sides read ---------------------------------------------------------------


def write_weights(folder: pathlib.Path, config: dict) -> None:
  """config.json and model.safetensors with random tensors, names without prefix."""
  from ttt_jax.audio.glm4 import checkpoint
  from ttt_jax.storage import safetensors_io
  (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')
  places = {place.name: place for place in checkpoint.places(
      checkpoint.shape_of(folder / 'config.json'))}
  draw = np.random.default_rng(0)

  def get(name: str) -> np.ndarray:
    shape = places[name].shape
    array = draw.standard_normal(shape, np.float32)
    if len(shape) == 1:
      return 0.1 * array + np.float32(name.endswith('norm.weight'))
    spread = {'codebook.weight': 1.0, 'embed_positions.weight': 0.3}.get(
        name, np.prod(shape[1:]) ** -0.5)
    return array * np.float32(spread)

  plans = [safetensors_io.Plan(name, place.shape, np.dtype(np.float32))
           for name, place in places.items()]
  safetensors_io.Writer(folder, plans, 1 << 50).write(get)


def write_waves(folder: pathlib.Path) -> dict[str, float]:
  """waves.npz: speech-like noise; returns seconds per case."""
  draw = np.random.default_rng(1)
  lengths = {'long': [30.0], 'speech': [2.3, 12.9, 4.6, 8.1], WARM: [2.0]}
  waves = {}
  for case, seconds in lengths.items():
    for i, duration in enumerate(seconds):
      time = np.arange(round(duration * RATE)) / RATE
      pitch = 120 + 40 * np.sin(2 * np.pi * 0.6 * time + i)
      phase = 2 * np.pi * np.cumsum(pitch) / RATE
      wave = sum(np.sin(k * phase) / k for k in range(1, 12)) + draw.normal(size=len(time))
      wave *= 0.1 * np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)
      waves[f'{case}{i:03d}'] = wave.astype(np.float32)
  np.savez(folder / 'waves.npz', **waves)
  return {case: float(sum(seconds)) for case, seconds in lengths.items() if case != WARM}


# -- our side ---------------------------------------------------------------------------


def serve(folder: pathlib.Path, threads: int) -> None:
  """Answer the driver's requests, as benchmarks/glm4_torch.py does."""
  common.stay_on(threads)
  import jax
  from ttt_jax.audio.glm4 import features
  from ttt_jax.audio.glm4.batches import Batches
  from ttt_jax.audio.glm4.checkpoint import Checkpoint
  from ttt_jax.audio.glm4.encoder import Encoder
  checkpoint = Checkpoint(folder)
  batches = Batches(Encoder(checkpoint.shape), checkpoint.read())

  def run(case: str, at_once: int) -> dict:
    with np.load(folder / 'waves.npz') as file:
      waves = [file[name] for name in sorted(file) if name.startswith(case)]
    mels = lambda: ((i, features.log_mel(wave), len(wave)) for i, wave in enumerate(waves))
    found, time = common.timed(lambda: dict(batches.run(mels())))
    return {'tokens': [found[i].tolist() for i in range(len(waves))], **time}

  common.serve({'about': lambda: {'versions': {'jax': jax.__version__}}, 'run': run})


# -- the driver -------------------------------------------------------------------------


def measure(quick: bool, threads: int, batch: int, repetitions: int) -> dict:
  """Everything; the result is what --json gets."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_weights(folder, SMALL if quick else PUBLISHED)
    seconds = write_waves(folder)
    with common.Side('benchmarks.glm4_torch', name, str(threads), threads=threads) as torch, \
        common.Side('benchmarks.glm4_tokenizer', 'serve', name, str(threads),
                    threads=threads) as ours:
      versions = {**torch.ask(do='about')['versions'], **ours.ask(do='about')['versions']}
      cases = {case: _case(case, torch, ours, batch, repetitions) for case in seconds}
  for case, found in cases.items():
    found['seconds_of_speech'] = seconds[case]
    found['times'] = (min(found['median'][side] for side in found['median'] if side != 'ours')
                      / found['median']['ours'])
  return {'machine': common.machine(threads), 'versions': versions, 'batch': batch,
          'config': SMALL if quick else PUBLISHED, 'aim': AIM, 'cases': cases}


def _case(case: str, torch: common.Side, ours: common.Side, batch: int,
          repetitions: int) -> dict:
  """The sides in turns, after what has to be compiled."""
  sides = {'torch, batches': (torch, batch), 'torch, one by one': (torch, 1), 'ours': (ours, 1)}
  if case == 'long':
    del sides['torch, batches']  # nothing to pad: the same work
  turns: dict[str, list] = {side: [] for side in sides}
  tokens = {}
  torch.ask(do='run', case=WARM, at_once=1)
  ours.ask(do='run', case=case, at_once=1)
  for turn in range(1, repetitions + 1):
    for side, (child, at_once) in sides.items():
      answer = child.ask(do='run', case=case, at_once=at_once)
      tokens.setdefault(side, np.concatenate([np.array(row) for row in answer.pop('tokens')]))
      print(f'{case}, turn {turn}: {side} {answer["seconds"]:.2f} s', file=sys.stderr)
      turns[side].append(answer)
  agree = float((tokens['ours'] == tokens['torch, one by one']).mean())
  if agree < AGREE:
    raise Disagreement(f'{case}: {agree:.1%} of the tokens are the same on both sides; at least '
                       f'{AGREE:.0%} must be')
  return {'agree': agree, 'tokens': len(tokens['ours']), 'distinct': len(set(tokens['ours'])),
          'turns': turns,
          'median': {side: common.median([one['seconds'] for one in all_of])
                     for side, all_of in turns.items()},
          'cpu': {side: common.median([one['cpu_seconds'] for one in all_of])
                  for side, all_of in turns.items()},
          'peak_bytes': {side: max(one['peak_bytes'] for one in all_of)
                         for side, all_of in turns.items()}}


def report(result: dict) -> str:
  rows = []
  for case, found in result['cases'].items():
    for side, median in found['median'].items():
      rows.append((f'{case}: {side}', f'{median:.2f}',
                   f'{found["seconds_of_speech"] / median:.2f}', f'{found["cpu"][side]:.2f}',
                   f'{found["peak_bytes"][side] / 2**20:,.0f}'))
  lines = [common.table(('', 's', 'speech s / s', 'CPU s', 'peak MiB'), rows)]
  for case, found in result['cases'].items():
    lines.append(f'{case}: {found["times"]:.2f} times the faster torch (aim {result["aim"]:g}); '
                 f'{found["agree"]:.1%} of {found["tokens"]} tokens agree')
  return '\n'.join(lines)


def main() -> None:
  if sys.argv[1:2] == ['serve']:
    return serve(pathlib.Path(sys.argv[2]), int(sys.argv[3]))
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='a small network')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--batch', type=int, default=4, help='segments that PyTorch pads together')
  parser.add_argument('--repetitions', type=int, default=2)
  parser.add_argument('--json', metavar='FILE')
  args = parser.parse_args()
  result = measure(args.quick, args.threads, args.batch, args.repetitions)
  print(report(result))
  if args.json:
    common.write_json(args.json, result)
  return None


if __name__ == '__main__':
  main()
