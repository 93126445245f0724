"""Cuts of Lhotse (cuts.jsonl.gz) as objects with the keys of recordings."""

import math
from typing import Any

from ttt_jax.errors import UserError

_APART = 0.05  # seconds by which a supervision may differ from the whole cut


def flat(value: dict[str, Any], where: str) -> dict[str, Any]:
  """A MonoCut as {"id", "audio", "offset", "duration", "text", ...}; another object unchanged.

  The text of several supervisions is joined; a single one that is shorter than the cut is the
  stretch that is read.

  Raises:
    UserError: a cut that is mixed of several, or whose recording is no local file.
  """
  if not isinstance(value.get('supervisions'), list) or not (
      isinstance(value.get('recording'), dict) or 'tracks' in value):
    return value
  recording = value.get('recording')
  sources = recording.get('sources') if isinstance(recording, dict) else None
  if not isinstance(recording, dict) or not isinstance(sources, list) or len(sources) != 1 or (
      not isinstance(sources[0], dict)):
    raise UserError(f'{where}: a cut of Lhotse needs one recording with one source; save mixed and '
                    'multi-channel cuts as files first.')
  source = sources[0]
  if recording.get('transforms'):
    raise UserError(f'{where}: the recording of the cut has transforms, such as a change of speed, '
                    'which are not applied; save the cut as a file first.')
  if source.get('type') not in ('file', None):
    raise UserError(f'{where}: the recording of the cut is a source of type {source["type"]!r}; '
                    'only files are read.')
  said = [one for one in value['supervisions'] if isinstance(one, dict)
          and isinstance(one.get('text'), str)]
  offset, duration = _number(value, 'start', where), _number(value, 'duration', where)
  if len(value['supervisions']) == 1 and said:
    start, length = _number(said[0], 'start', where), _number(said[0], 'duration', where)
    if start > _APART or 0 < length < duration - _APART:
      offset, duration = offset + max(0.0, start), min(length, duration - max(0.0, start))
  said.sort(key=lambda one: _number(one, 'start', where))
  out = {'id': value.get('id'), 'audio': source.get('source'), 'offset': offset,
         'duration': duration, 'text': ' '.join(one['text'] for one in said),
         'speaker': said[0].get('speaker') if said else None,
         'language': said[0].get('language') if said else None}
  channels = source.get('channels')
  if isinstance(channels, list) and len(channels) > 1 and value.get('channel') != channels:
    out['channel'] = value.get('channel')  # all of them are averaged
  custom = value.get('custom') or {}
  return {**{key: one for key, one in (custom.items() if isinstance(custom, dict) else ())},
          **{key: one for key, one in out.items() if one is not None}}


def _number(value: dict[str, Any], key: str, where: str) -> float:
  found = value.get(key, 0)
  if not isinstance(found, (int, float)) or isinstance(found, bool):
    raise UserError(f'{where}: {key!r} of the cut is {str(found)[:40]!r}; it must be a number.')
  try:
    return float(found)
  except OverflowError:
    return math.inf
