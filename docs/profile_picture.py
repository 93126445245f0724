"""Draws docs/images/profile.png: the steps of a trace, and their device time by part of the model.

  ttt-jax train --config configs/demo.py --workdir traced --config.train.profile=10:13
  python docs/profile_picture.py traced/profile/plugins/profile/DATE/HOST.xplane.pb

The trace holds the compiled programs, whose instructions carry the names of ``jax.named_scope``. It
must be of a run on a CPU, and of a program that was compiled with these names: one of JAX's cache
has those of the code that compiled it.
"""

import argparse
import collections
from collections.abc import Iterator
import pathlib

import jax
import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot as plt

OUT = pathlib.Path(__file__).parent / 'images' / 'profile.png'
# (part of a scope's path, label, colour); the first that matches counts.
PARTS = (
    ('attention/scores', 'attention: scores', '#d95f02'), ('attention', 'attention: the rest',
                                                           '#fdb462'),
    ('mlp', 'MLP', '#1b9e77'), ('loss', 'loss over the vocabulary', '#7570b3'),
    ('optimizer', 'optimizer', '#e7298a'), ('noise', 'noise and mask', '#66a61e'),
    ('mask', 'noise and mask', '#66a61e'), ('embedding', 'embedding', '#80b1d3'),
    ('layers', 'layers: the rest', '#a6cee3'))
OTHER = ('other', '#999999')
HOST = {'batch': '#80b1d3', 'wait for the device': '#dddddd', 'metrics': '#fdb462'}


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(number, value) of the fields of a protobuf message."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte, at = data[at], at + 1
      value, shift = value | (byte & 127) << shift, shift + 7
      if byte < 128:
        return value
  while at < len(data):
    key = varint()
    if key & 7 == 0:
      yield key >> 3, varint()
    else:
      size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
      yield key >> 3, data[at:at + size]
      at += size


def messages(data: bytes, *path: int) -> Iterator[bytes]:
  """The messages at a path of field numbers."""
  if not path:
    yield data
    return
  for number, value in fields(data):
    if number == path[0] and isinstance(value, bytes):
      yield from messages(value, *path[1:])


def scopes(data: bytes) -> dict[str, str]:
  """Instruction -> op_name of the programs in a trace (xplane.proto, hlo.proto)."""
  found: dict[str, str] = {}
  for plane in messages(data, 1):
    if b'/host:metadata' not in list(messages(plane, 2)):
      continue
    # event_metadata (map: value), stats, bytes_value, hlo_module, computations, instructions
    for instruction in messages(plane, 4, 2, 5, 6, 1, 3, 2):
      name = next(messages(instruction, 1), b'').decode()
      scope = next(messages(instruction, 7, 2), b'').decode()
      if scope.startswith('jit(step)'):
        found[name] = scope
  return found


def part_of(scope: str) -> tuple[str, str]:
  """(label, colour)."""
  for name, label, colour in PARTS:
    if name in scope:
      return label, colour
  return OTHER


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('trace', help='HOST.xplane.pb of a run on a CPU')
  parser.add_argument('--out', default=str(OUT))
  args = parser.parse_args()
  names = scopes(pathlib.Path(args.trace).read_bytes())
  host, device = [], []
  for plane in jax.profiler.ProfileData.from_file(args.trace).planes:
    for line in plane.lines:
      for event in line.events:
        one = (event.start_ns / 1e6, event.duration_ns / 1e6)
        if event.name in ('train', *HOST):
          host.append((event.name, *one))
        elif event.name in names:
          device.append((line.name, names[event.name], *one))
  begin = min(start for _, start, _ in host)
  figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5.2), height_ratios=(1.1, 1),
                                       layout='constrained')
  end = max(start + long for _, start, long in host)
  for name, start, long in host:
    row, colour = (0, '#4d4d4d') if name == 'train' else (1, HOST[name])
    top.broken_barh([(start - begin, long)], (-row, 0.8), color=colour, edgecolor='white')
    if name in ('train', 'wait for the device') and long > 0.15 * (end - begin):
      top.text(start - begin + long / 2, -row + 0.4, name, ha='center', va='center', fontsize=8,
               color='white' if name == 'train' else 'black', clip_on=True)
  busy: dict[str, float] = collections.defaultdict(float)
  colours = {}
  threads = {thread: 2 + row for row, thread in enumerate(sorted({one[0] for one in device}))}
  bars = collections.defaultdict(list)
  # Events of one thread nest: a loop contains its instructions. The innermost counts.
  for thread in threads:
    mine = sorted((one[1:] for one in device if one[0] == thread),
                  key=lambda one: (one[1], -one[2]))
    for (scope, start, long), after in zip(mine, [*mine[1:], None]):
      if after is not None and after[1] < start + long - 1e-6:
        continue
      label, colour = part_of(scope)
      colours[label] = colour
      busy[label] += long
      bars[threads[thread], colour].append((start - begin, long))
  for (row, colour), spans in bars.items():
    top.broken_barh(spans, (-row, 0.8), color=colour, linewidth=0)
  top.set_yticks([0.4, -0.6] + [-row + 0.4 for row in threads.values()],
                 ['step', 'host'] + [f'CPU thread {row - 1}' for row in threads.values()])
  top.set_xlabel('ms')
  top.set_xlim(0, end - begin)
  total = sum(busy.values())
  ordered = sorted(busy, key=lambda label: busy[label])
  bottom.barh(ordered, [100 * busy[label] / total for label in ordered],
              color=[colours[label] for label in ordered])
  for row, label in enumerate(ordered):
    bottom.text(100 * busy[label] / total + 0.5, row, f'{100 * busy[label] / total:.1f} %',
                va='center', fontsize=8)
  bottom.set_xlabel('share of the device time [%]')
  for axes in (top, bottom):
    axes.spines[['top', 'right']].set_visible(False)
  figure.savefig(args.out, dpi=110)


if __name__ == '__main__':
  main()
