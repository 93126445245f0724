"""The tables of benchmarks/generate.py, in 80 columns."""

from benchmarks import common

# Targets for the engine without guidance: ours / torch.
RATE = {1: 30, 8: 60}
FIRST_AUDIO, GROWTH = 20, 1.25


def show(result: dict) -> str:
  """All tables of one vocabulary."""
  config = result['config']
  return '\n\n'.join([
      f'Vocabulary {result["vocabulary"]:,}, {config["num_layers"]} layers of '
      f'{config["hidden_size"]}, float32; {result["tokens"]:,} tokens.\ntorch: steps timed '
      'along the conversation and '
      'integrated over its lengths.', *(_case(case, result) for case in result['cases']),
      _contexts(result),
      _memory(result),
      _pieces(result)
  ]) + '\n'


def generated(result: dict) -> int:
  """Number of generated tokens of a conversation."""
  return result['tokens'] - result['shape']['prompt']


def rates(case: dict, result: dict) -> dict:
  """{'torch': tokens/s, 'ours': {(context, requests): tokens/s of all}}."""
  count = generated(result)
  ours = {(context, int(batch)): count * int(batch) / made['seconds']
          for context, batches in case['ours'].items() for batch, made in batches.items()}
  return {'torch': count / case['seconds']['torch'], 'ours': ours}


def _case(case: dict, result: dict) -> str:
  found = rates(case, result)
  made = next(iter(case['ours']['published'].values()))
  guided = case['guidance'] > 0
  rows = [('torch', f'{found["torch"]:,.2f}', '', '')]
  for (context, batch), rate in found['ours'].items():
    name = f'ours, {batch} at once' + (f", context '{context}'" if guided else '')
    aim = f'>= {RATE[batch]}' if not guided and batch in RATE else ''
    rows.append((name, f'{rate:,.1f}', f'{rate / found["torch"]:.1f}', aim))
  title = f'{case["steps"]} steps per block, guidance {case["guidance"]:g}'
  lines = [common.table((title, 'tokens/s', 'ours/torch', 'wanted'), rows)]
  rows = [(f'first block after {length} tokens', f'{times["torch"]:.3f}', f'{times["ours"]:.4f}',
           f'{times["torch"] / times["ours"]:.1f}', '' if guided else f'>= {FIRST_AUDIO}')
          for length, times in case['first_audio'].items()]
  # The second turn of the conversation: all but its last token is in the prefix cache.
  cached = made['turns'][1]['first_audio']
  *_, (length, times) = case['first_audio'].items()
  rows.append((f'the same, {length} cached', f'{times["torch"]:.3f}', f'{cached:.4f}',
               f'{times["torch"] / cached:.1f}', '' if guided else f'>= {FIRST_AUDIO}'))
  lines.append(common.table(('seconds', 'torch', 'ours', 'torch/ours', 'wanted'), rows))
  checks = [check for points in case['samples'].values() for *_, check in points]
  checks.append(case['check'])
  parted = [check for check in checks if check['parted'] is not None]
  lines.append(f'{sum(check["equal"] for check in checks)} tokens of torch are ours, '
               f'{case["check"]["equal"]} of them in one answer; near ties that parted: '
               f'{len(parted)}.')
  compiled = sum(turn['compiled'] for batches in case['ours'].values()
                 for made in batches.values() for turn in made['turns'])
  kinds = {kind: sum(turn['seconds_by_kind'][kind] for turn in made['turns'])
           for kind in ('text', 'audio')}
  lines.append(f'Compiled after the warm-up: {compiled}. One request: text '
               f'{kinds["text"]:.2f} s, audio {kinds["audio"]:.2f} s.')
  return '\n'.join(lines)


def _contexts(result: dict) -> str:
  at = result['contexts']
  rows = [(f'{length} tokens', f'{times["torch"]:.3f}', f'{1e3 * times["ours"]:.1f}',
           f'{times["torch"] / times["ours"]:.1f}') for length, times in at.items()]
  short, long = list(at.values())[0], list(at.values())[-1]
  rows.append(('growth', f'{long["torch"] / short["torch"]:.2f}',
               f'{long["ours"] / short["ours"]:.2f}', f'ours <= {GROWTH}'))
  return common.table(('an audio step after', 'torch, s', 'ours, ms', 'torch/ours'), rows)


def _memory(result: dict) -> str:
  mib = lambda count: f'{count / 2**20:,.1f}'
  rows = [(f'cache of {name} tokens', '', mib(made['cache_bytes']))
          for name, made in result['live'].items()]
  for name, key in (('peak of all conversations', None), ('when imported', 'imported_bytes')):
    about = result['about']
    pick = lambda side: result['peak_bytes'][side] if key is None else about[side][key]
    rows.append((name, mib(pick('torch')), mib(pick('ours'))))
  for length, times in result['contexts'].items():
    rows.append((f'peak after {length} tokens', mib(times['torch_peak_bytes']),
                 mib(times['ours_peak_bytes'])))
  return common.table(('MiB', 'torch', 'ours'), rows)


def _pieces(result: dict) -> str:
  names = ('trunk', 'head', 'rest')
  rows = [(f'{piece["rows"]} rows, ' + (f'{piece["wanted"]} masks each' if piece['wanted'] else
                                        'text'),
           *(f'{1e3 * piece[name]:.1f}' for name in names)) for piece in result['pieces']]
  return common.table(('one step of ours, parts in ms', *names), rows)
