"""The table that `ttt-jax prepare` prints at the end: the manifest's counts in 80 columns."""

import textwrap
from typing import Any

_BAR = 40  # columns


def table(manifest: dict[str, Any]) -> str:
  """Records and tokens by split and task, documents by length, truncated and rejected records."""
  wide = max(map(len, ('split', *manifest['splits']))) + 2
  lines = [f'{"split":<{wide}}{"task":<11}{"records":>11}{"text":>13}{"audio":>13}{"rows":>10}'
           f'{"padding":>9}']
  for name, split in manifest['splits'].items():
    for task, entry in sorted(split['tasks'].items()):
      lines.append(f'{name:<{wide}}{task:<11}{entry["records"]:>11,}{entry["text"]:>13,}'
                   f'{entry["audio"]:>13,}')
    tokens = split['tokens']
    lines.append(f'{name:<{wide}}{"all":<11}{split["documents"]:>11,}{tokens["text"]:>13,}'
                 f'{tokens["audio"]:>13,}{split["rows"]:>10,}{split["padding"]:>9.1%}')
  lines += ['', *_histogram(manifest)]
  cut = sum(split['truncated'] for split in manifest['splits'].values())
  if cut:
    lines.append(f'{cut:,} documents were truncated to fit a row (data.truncate)')
  lines += [f'rejected: {reason}: {count:,}' for reason, count in manifest['rejects'].items()]
  lines += [f'left out of {path}: {reason}: {count:,}'
            for path, found in manifest.get('left_out', {}).items()
            for reason, count in sorted(found.items())]
  lines += _unused(manifest.get('unused_keys', {}))
  lines.append(f'vocabulary {manifest["fingerprint"]} ({manifest["vocabulary"]["text"]} + '
               f'{manifest["vocabulary"]["codec"]}), rows of {manifest["seq_len"]:,} tokens')
  return '\n'.join(lines)


def _unused(found: dict[str, dict[str, int]]) -> list[str]:
  """The keys of records that were not used, one line per source and more where it is long."""
  lines = []
  for path, keys in found.items():
    named = [f'{key} ({count:,})' for key, count in sorted(keys.items())]
    lines += textwrap.wrap(f'keys not used in {path} (records): {", ".join(named)}', 80,
                           subsequent_indent='  ', break_long_words=False, break_on_hyphens=False)
  return lines


def _histogram(manifest: dict[str, Any]) -> list[str]:
  """Documents by length over all splits, from the first non-empty bin to the last."""
  splits = list(manifest['splits'].values())
  edges = splits[0]['lengths']['edges']
  counts = [sum(column) for column in zip(*(split['lengths']['documents'] for split in splits))]
  some = [i for i, count in enumerate(counts) if count]
  highest = max(counts)
  lines = [f'{"tokens":<15}{"documents":>11}']
  for i in range(some[0], some[-1] + 1):
    size = f'{edges[i]:,} to {edges[i + 1] - 1:,}'
    lines.append(f'{size:<15}{counts[i]:>11,}  {"#" * round(_BAR * counts[i] / highest)}'.rstrip())
  return lines
