"""Damages files of every kind and opens them: each is read, or rejected with one sentence.

  make fuzz
  make fuzz FUZZ='--seconds 600 --seed 3'
  python tools/fuzz.py --kinds codec,safetensors --cases 2000

Every case is a function of the seed, the kind and its number; --only KIND:NUMBER repeats one and
shows its traceback. The address space is limited, so that an allocation whose size is taken from a
damaged file fails.
"""

import argparse
import collections
import logging
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

from tools import fuzz_damage, fuzz_scenes  # noqa: E402
from ttt_jax.errors import UserError  # noqa: E402

READ, SENTENCE, TRACEBACK = 'read', 'sentence', 'traceback'
SPARE = 2**31  # bytes of address space beyond what the intact scenes took


class Campaign:
  """Cases of some kinds in a folder of its own; use as a context manager.

  Attributes:
    counts: kind -> outcome -> how many cases.
    failures: a line about every traceback.
  """

  def __init__(self, kinds, seed: int, limit: bool = True):
    """
    Args:
      kinds: keys of fuzz_scenes.SCENES.
      seed: of all damage.
      limit: whether to limit the address space of this process.
    """
    self.kinds, self.seed = list(kinds), seed
    self.counts = {kind: collections.Counter() for kind in self.kinds}
    self.failures: list[str] = []
    self._limit = limit

  def __enter__(self) -> 'Campaign':
    self._temporary = tempfile.TemporaryDirectory(prefix='ttt-jax-fuzz-')
    self._folder = pathlib.Path(self._temporary.name)
    for kind in self.kinds:
      intact = self._folder / 'intact' / kind
      intact.mkdir(parents=True)
      fuzz_scenes.SCENES[kind].make(intact)
      fuzz_scenes.SCENES[kind].open(shutil.copytree(intact, self._folder / 'case'))
      shutil.rmtree(self._folder / 'case')
    self._before = resource.getrlimit(resource.RLIMIT_AS)
    if self._limit:
      pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
      resource.setrlimit(resource.RLIMIT_AS, (
          pages * resource.getpagesize() + SPARE, self._before[1]))
    return self

  def __exit__(self, *_) -> None:
    resource.setrlimit(resource.RLIMIT_AS, self._before)
    self._temporary.cleanup()

  def run(self, kind: str, number: int, show: bool = False) -> str:
    """One case; returns its outcome."""
    scene = fuzz_scenes.SCENES[kind]
    dice = random.Random(f'{self.seed} {kind} {number}')
    folder = shutil.copytree(self._folder / 'intact' / kind, self._folder / 'case')
    name = dice.choice(sorted(scene.files))
    what = fuzz_damage.harm(folder / name, scene.files[name], dice)
    said = ''
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        scene.open(folder)
      outcome = READ
    except UserError as error:
      said = str(error)
      outcome = SENTENCE if said.endswith(('.', '?')) and '\n' not in said else TRACEBACK
    except Exception as error:
      said, outcome = f'{type(error).__name__}: {error}', TRACEBACK
      if show:
        traceback.print_exc()
    finally:
      shutil.rmtree(folder)
    if show:
      print(f'{name}: {what}: {outcome}: {said}')
    self.counts[kind][outcome] += 1
    if outcome == TRACEBACK:
      self.failures.append(f'{kind}:{number} {name}: {what}: {said}'.replace('\n', ' ')[:300])
    return outcome

  def table(self) -> str:
    """The counts as text."""
    lines = [f'{"kind":<12}{"cases":>8}{READ:>8}{"sentences":>11}{"tracebacks":>12}']
    total = sum(self.counts.values(), collections.Counter())
    for name, count in [*self.counts.items(), ('all', total)]:
      lines.append(f'{name:<12}{count.total():>8}{count[READ]:>8}{count[SENTENCE]:>11}'
                   f'{count[TRACEBACK]:>12}')
    return '\n'.join(lines)


def main() -> int:
  """Run a campaign; returns 1 if there was a traceback."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kinds', default=','.join(fuzz_scenes.SCENES), help='separated by commas')
  parser.add_argument('--cases', type=int, default=200, help='per kind (default: 200)')
  parser.add_argument('--seconds', type=float, help='run for this long instead')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', metavar='KIND:NUMBER', help='repeat one case')
  args = parser.parse_args()
  logging.disable()  # warnings about files that are read in part
  kinds = [args.only.split(':')[0]] if args.only else args.kinds.split(',')
  with Campaign(kinds, args.seed) as campaign:
    if args.only:
      campaign.run(kinds[0], int(args.only.split(':')[1]), show=True)
    else:
      end, number = time.monotonic() + (args.seconds or 0), 0
      while time.monotonic() < end if args.seconds else number < args.cases:
        for kind in kinds:
          campaign.run(kind, number)
        number += 1
  print(campaign.table())
  print('\n'.join(campaign.failures))
  return bool(campaign.failures)


if __name__ == '__main__':
  sys.exit(main())
