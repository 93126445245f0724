"""How fast a benchmark is evaluated in batches of the engine, beside one request at a time.

  python -m benchmarks.evaluate_suite --workdir demo --data demo/speech/heldout_strings.jsonl

The recordings of --data are transcribed (suite asr) by the newest checkpoint of --workdir, with
evaluate.batch of --batches in turn. Every batch runs --repetitions + 1 times in one process; the
first time, which compiles, is left out, and times are medians. The answers of all batches must be
the same texts. Times are from the first encoded recording to the last answer; the model is loaded
before.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402


def measure(config, workdir: str, data: str, items: int, batches: list[int], repetitions: int
            ) -> list[dict]:
  """Seconds per batch size, with the texts of the answers; ``config``: of the workdir."""
  from ttt_jax.evaluate.suites import answering, asr, runner
  from ttt_jax.train import trained_model
  run = trained_model.load(config, workdir)
  every = asr.Asr(config).items(pathlib.Path(data))
  asked = [(number, every[number]) for number in runner.spaced(len(every), items)]
  out = [{'batch': batch, 'items': len(asked), 'seconds': [], 'cpu_seconds': []}
         for batch in batches]
  for turn in range(repetitions + 1):  # in turns, so that other load affects all alike
    for one in out:
      batched = dataclasses.replace(run, config=dataclasses.replace(
          config, evaluate=dataclasses.replace(config.evaluate, batch=one['batch'])))
      found, times = common.timed(lambda: list(answering.replies(batched, asked)))
      one['texts'] = {number: reply.text for number, _, reply in found}
      if turn:  # the first one compiles
        one['seconds'].append(times['seconds'])
        one['cpu_seconds'].append(times['cpu_seconds'])
  return out


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--items', type=int, default=48)
  parser.add_argument('--batches', default='1,4,16')
  parser.add_argument('--repetitions', type=int, default=3)
  parser.add_argument('--json')
  args = parser.parse_args(argv)
  from ttt_jax import config as config_lib
  config = config_lib.load(pathlib.Path(args.workdir) / 'config.json')
  found = measure(config, args.workdir, args.data, args.items,
                  list(map(int, args.batches.split(','))), args.repetitions)
  differ = [one['batch'] for one in found if one['texts'] != found[0]['texts']]
  if differ:
    sys.exit(f'batches {differ} give other texts than batch {found[0]["batch"]}')
  base = statistics.median(found[0]['seconds'])
  print(f'{"batch":>6}{"seconds":>12}{"CPU seconds":>14}{"items/s":>12}{"speed":>10}')
  for one in found:
    seconds, cpu = (statistics.median(one[key]) for key in ('seconds', 'cpu_seconds'))
    print(f'{one["batch"]:>6}{seconds:>12.2f}{cpu:>14.2f}{one["items"] / seconds:>12.2f}'
          f'{base / seconds:>9.2f}x')
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(
        {'machine': common.machine(os.cpu_count() or 1), 'batches': [
            {key: value for key, value in one.items() if key != 'texts'} for one in found]},
        indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
