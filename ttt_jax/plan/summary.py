"""A plan as text, 80 columns wide."""

import textwrap
from typing import Any

_WIDTH = 80
_LABEL = 27  # columns of the labels


def text(plan: dict[str, Any]) -> str:
  """The text of a plan from planner.plan."""
  lines = [*_title(plan), '', *_memory(plan), '', *_work(plan), '', *_travel(plan), '',
           *_time(plan), '', *_verdict(plan)]
  return '\n'.join(lines)


def _row(what: str, value: str) -> list[str]:
  wrapped = textwrap.wrap(value, _WIDTH - _LABEL, break_on_hyphens=False) or ['']
  return [f'{what:<{_LABEL}}{wrapped[0]}'.rstrip()] + [' ' * _LABEL + line for line in wrapped[1:]]


def _title(plan: dict[str, Any]) -> list[str]:
  slices = f'{plan["slices"]} slices of ' if plan['slices'] > 1 else ''
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan['mesh'].items() if size > 1)
  rows = (f'{plan["batch_size"]:,} rows x {plan["seq_len"]:,} tokens' +
          (f' in {plan["grad_accum_steps"]} microbatches' if plan['grad_accum_steps'] > 1 else ''))
  sample = plan['sample']
  return [
      *_row('config', f'{plan["config"]}: {plan["parameters"] / 1e9:.3f} billion parameters, '
            f'{plan["vocabulary"]:,} ids, {plan["optimizer"]}'
            + (f', preset {plan["hardware"]}' if plan['hardware'] else '')),
      *_row('chips', f'{slices}{plan["topology"]} = {plan["chips"]:,} chips; mesh {mesh or "1"}'),
      *_row('a step', rows),
      *_row('data', f'{sample["source"]}: {sample["rows"]} rows, '
            f'{sample["documents"]:.1f} documents each, '
            f'padding {1 - sample["tokens"] / plan["seq_len"]:.1%}, loss at '
            f'{sample["scored"] / plan["seq_len"]:.1%} of the positions, '
            f'{sample["mask_pairs"] / plan["seq_len"] ** 2:.1%} of the T x T pairs allowed by the '
            f'mask, in {sample["visited"]:.1%} of the blocks')]


def _memory(plan: dict[str, Any]) -> list[str]:
  gb = lambda size: f'{size / 1e9:9.2f} GB'
  source = ('from the compiler' if plan['compiled'] else
            'estimated: ' + plan['not_compiled_because'])
  lines = _row('MEMORY per chip', source)
  lines += [line for name, size in plan['hbm_parts'].items() if size
            for line in _row('  ' + name, gb(size))]
  share = plan['hbm_bytes_per_chip'] / plan['hbm_limit_bytes']
  lines += _row('  needed', f'{gb(plan["hbm_bytes_per_chip"])} of '
                f'{plan["hbm_limit_bytes"] / 1e9:.2f} GB ({share:.0%})')
  if len(plan['tried']) > 1:
    for one in plan['tried']:
      how = 'compiled' if one['compiled'] else 'estimated'
      lines += _row(f'  remat {one["remat"]}', f'{gb(one["bytes"])}, {how}: '
                    + ('fits' if one['fits'] else 'does not fit'))
  lines += [line for text in plan['replicated_parameters'][:1]
            for line in _row('  replicated', text.rstrip(':'))]
  return lines + [line for text in plan['replicated_parameters'][1:]
                  for line in _row('', text.strip())]


def _work(plan: dict[str, Any]) -> list[str]:
  useful, executed = plan['useful_flops'], plan['executed_flops']
  lines = _row('WORK per step', f'remat {plan["remat"]}, attention {plan["attention"]}')
  lines += _row('  useful', f'{useful:9.3g} FLOP')
  lines += _row('  executed', f'{executed:9.3g} FLOP ({executed / useful:.2f} times)')
  return lines + [line for name, size in plan['executed_parts'].items() if size
                  for line in _row('    ' + name, f'{size:9.3g} FLOP ({size / executed:.1%})')]


def _travel(plan: dict[str, Any]) -> list[str]:
  lines = _row('NETWORK per step and device', '')
  for kind, size in plan['collectives'].items():
    lines += _row('  ' + kind, f'{size / 1e9:9.3f} GB')
  if not plan['collectives']:
    lines += _row('  nothing', '')
  return lines + [line for warning in plan['warnings'] for line in _row('  WARNING', warning)]


def _time(plan: dict[str, Any]) -> list[str]:
  roof, ms = plan['roofline'], lambda seconds: f'{1e3 * seconds:9.1f} ms'
  lines = _row('TIME per step, at least', f'{ms(roof["seconds"])}, bound by {roof["bound_by"]}')
  for part, what in (('compute', 'compute'), ('memory', 'main memory'),
                     ('ici', 'overlapped ICI' if plan['chip']['platform'] == 'tpu' else
                      'overlapped NVLink'),
                     ('dcn', 'overlapped DCN'), ('waiting', 'exposed collectives')):
    if roof[part]:
      lines += _row('  ' + what, ms(roof[part]))
  lines += _row('  MFU, at most', f'{plan["mfu_bound"]:9.1%}')
  lines += _row('  tokens per second', f'{plan["tokens_per_second_bound"]:9,.0f}')
  lines += _row('  chip seconds', f'{plan["chip_seconds_per_million_tokens"]:9.2f} '
                'per million tokens')
  if plan['compile_seconds']:
    lines += _row('compile time', f'{plan["compile_seconds"]:9.0f} s')
  return lines


def _verdict(plan: dict[str, Any]) -> list[str]:
  if plan['fits']:
    estimated = '' if plan['compiled'] else ', estimated'
    return [f'fits{estimated}, with remat {plan["remat"]!r}.']
  return ['does not fit. Change one of these; the first cost least:',
          *(f'  {change}' for change in plan['advice'])]
