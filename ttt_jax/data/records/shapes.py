"""The shapes of records: one object to a list of turns, as written, before sounds are placed.

  {"messages": [{"role": "user", "content": ...}, ...]}   also conversations, conversation, dialogue
  {"conversations": [{"from": "human", "value": ...}, ...]}
  {"conversation": [{"human": ..., "assistant": ...}, ...]}
  {"prompt": ..., "response": ...}                        also query, question, instruction, input;
                                                          completion, output, answer
  {"text": ...}                                           a pretraining document
"""

import dataclasses
import json
from typing import Any, NoReturn

from ttt_jax.data.records import keys
from ttt_jax.errors import UserError

LISTS = ('messages', 'conversations', 'conversation', 'dialogue', 'dialog')
ASKS = ('prompt', 'query', 'instruction', 'question')
ANSWERS = ('response', 'completion', 'output', 'answer')
_MORE = ('input', 'context')  # of the user, after the question
SYSTEMS = ('system', 'system_prompt', 'system_message')
_SHAPES = '"messages", "conversations", "prompt" and "response", or "text"'
_ROLE_KEYS, _CONTENT_KEYS = ('role', 'from', 'speaker'), ('content', 'value', 'text')
_SPEAKERS = {'user': ('human', 'user', 'query', 'question', 'prompt', 'instruction', 'input'),
             'assistant': ('assistant', 'gpt', 'bot', 'response', 'answer', 'output')}
_ROLES = {
    **dict.fromkeys(('system', 'developer'), 'system'),
    **dict.fromkeys(('user', 'human', 'prompter'), 'user'),
    **dict.fromkeys(('assistant', 'gpt', 'chatgpt', 'bot', 'chatbot', 'model', 'ai', 'bing',
                     'bard'), 'assistant')}
_TOOL_ROLES = ('tool', 'function', 'observation', 'function_call', 'tool_call', 'tool_response',
               'tool_result', 'ipython', 'environment')
# Keys of a turn that say whether it has a loss; the second group says so when it is false.
_FLAGS = ('weight', 'loss', 'train', 'learn', 'trainable', 'training', 'loss_weight', 'loss_mask',
          'train_on_turn', 'supervised', 'loss_scale', 'learnable', 'compute_loss', 'has_loss',
          'with_loss', 'use_loss', 'do_train', 'is_trainable')
_INVERTED = ('mask', 'masked', 'is_masked', 'ignore', 'ignore_loss', 'no_loss', 'mask_loss',
             'skip_loss', 'no_train', 'context_only', 'is_context', 'exclude_from_loss')
_ALL_FLAGS = frozenset((*_FLAGS, *_INVERTED, 'sample_weight'))


@dataclasses.dataclass
class Written:
  """One turn as written.

  Attributes:
    role: 'system', 'user', 'assistant' or 'document'.
    content: a string, a list of parts, or None.
    at: its place, such as 'messages[0].content'.
    value: the turn's object, for further keys; {} where the record has no object per turn.
    learned: whether the turn has a loss.
    sound: the content is the path of a sound (a turn of type audio).
    used: keys of ``value`` that were read.
  """
  role: str
  content: Any
  at: str
  value: dict[str, Any] = dataclasses.field(default_factory=dict)
  learned: bool = True
  sound: bool = False
  used: set[str] = dataclasses.field(default_factory=set)


def turns_of(value: dict[str, Any], where: str) -> tuple[list[Written], set[str]]:
  """The turns of a record, and the keys of the record that they come from.

  Raises:
    UserError: no known shape, or turns that contradict each other.
  """
  def fail(message: str) -> NoReturn:
    raise UserError(f'{where}: {message}')
  used: set[str] = set()
  listed = next((key for key in LISTS if key in value), None)
  ask = [key for key in ASKS if key in value]
  answer = next((key for key in ANSWERS if key in value), None)
  both = 'input' in value and not listed
  if listed:
    used.add(listed)
    turns = _listed(value[listed], listed, where)
  elif answer and (ask or both):
    turns = _pair(value, ask, answer, where)
    used |= {*ask[:1], answer, *_MORE}
  elif ask or ('response' in value):
    given = ask[0] if ask else 'response'
    fail(f'the key {"response" if ask else "prompt"!r} is missing; {given!r} needs it beside it'
         + ('; a question and its answer are "prompt" and "response".' if given not in (
             'prompt', 'response') else '.'))
  elif 'text' in value:
    return [Written('document', value['text'], 'text')], {'text'}
  else:
    fail(f'a record needs {_SHAPES}; this one has {", ".join(map(repr, value)) or "no keys"}.')
  if value.get('history') is not None:
    used.add('history')
    turns = _with_history(value['history'], turns, where)
  for key in SYSTEMS:
    if isinstance(value.get(key), str):
      used.add(key)
      turns = _with_system(value[key], key, turns, where)
  used |= record_flags(value, where)
  if value.get('label') is False:  # KTO
    fail('the record has label false, a bad answer; answers are learned as they are: leave the '
         'record out, or remove the key.')
  used |= {'label'} if value.get('label') is True else set()
  for i, turn in enumerate(turns):
    if turn.role == 'system' and i:
      fail(f'{turn.at.rpartition(".")[0] or turn.at} is a system turn; only the first turn may be '
           'one.')
  return turns, used


def _listed(items: Any, key: str, where: str) -> list[Written]:
  """The turns of a list; a list may be given as JSON, as in Parquet."""
  items = _rows(_unquoted(items))
  if isinstance(items, str) and items.strip():
    raise UserError(f'{where}: {key} is the string {items[:40]!r}, which is no JSON; it must be a '
                    'list of {"role": ..., "content": ...}, or such a list as JSON.')
  if not isinstance(items, list) or not items:
    raise UserError(f'{where}: {key} must be a non-empty list of {{"role": ..., "content": ...}}.')
  out: list[Written] = []
  for i, item in enumerate(items):
    at = f'{key}[{i}]'
    value = {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else {}
    role_key = next((k for k in _ROLE_KEYS if k in value), None)
    if role_key is None:
      said = _said(value, at, where)
      same = out and said[0].role == 'system' and said[0].content == out[0].content
      out += said[1:] if same else said  # XTuner may repeat it
      continue
    out.append(_turn(value, role_key, at, where))
  return out


def _rows(items: Any) -> Any:
  """Columns of equal length, as some data sets of Hugging Face store a list, as a list of rows."""
  if not isinstance(items, dict) or not items or not all(
      isinstance(column, list) for column in items.values()):
    return items
  if len({len(column) for column in items.values()}) > 1:
    return items
  return [dict(zip(items, row)) for row in zip(*items.values())]


def _said(value: dict[str, Any], at: str, where: str) -> list[Written]:
  """A question and its answer in one object, such as {"human": ..., "assistant": ...}."""
  found = {role: next((k for k in names if k in value), None) for role, names in _SPEAKERS.items()}
  if None in found.values():
    raise UserError(f"{where}: {at} must be an object with 'role' and 'content', or with 'from' "
                    "and 'value'.")
  taken = {key for key in found.values() if key} | {'system'}
  system = [] if keys.empty(value.get('system')) else [
      Written('system', value['system'], f'{at}.system')]
  return system + [
      Written(role, value[key], f'{at}.{key}', value if role == 'user' else {}, used=taken)
      for role, key in found.items() if key]


def _turn(value: dict[str, Any], role_key: str, at: str, where: str) -> Written:
  role = role_of(value[role_key], f'{where}: {at}.{role_key}')
  content_key = next((k for k in _CONTENT_KEYS if k in value), None)
  used = {role_key, *([content_key] if content_key else ())}
  kind = next((value[k] for k in ('message_type', 'type') if isinstance(value.get(k), str)), '')
  content = value[content_key] if content_key else None
  if kind.lower() in ('audio-text', 'audio_text') and isinstance(content, list) and (
      len(content) == 2 and isinstance(content[1], str)):  # Kimi-Audio
    content = [{'type': 'text', 'text': content[1]},
               *([{'type': 'audio', 'audio': content[0]}] if content[0] else [])]
  sound = kind.lower() in ('audio', 'speech', 'sound') and isinstance(content, str)
  if kind.lower() in ('image', 'video'):
    raise UserError(f'{where}: {at} is of type {kind!r}; only text and sound are read.')
  used |= {'message_type', 'type'} & set(value)
  learned, flags = _learned(value, role, f'{where}: {at}')
  return Written(role, content,
                 f'{at}.{content_key or "content"}', value, learned, sound, used | flags)


def role_of(found: Any, at: str) -> str:
  """'system', 'user' or 'assistant' from any of their names."""
  name = found.strip().lower() if isinstance(found, str) else ''
  if name in _TOOL_ROLES:
    raise UserError(f'{at} is {found!r}; tools are not rendered; write calls and results as text '
                    'of the user and the assistant, or leave the record out.')
  if name not in _ROLES:
    raise UserError(f'{at} is {str(found)[:40]!r}; use one of assistant, gpt, human, system, '
                    'user.')
  return _ROLES[name]


def _learned(value: dict[str, Any], role: str, at: str) -> tuple[bool, set[str]]:
  """(whether the turn has a loss, the keys that say so)."""
  if _ALL_FLAGS.isdisjoint(value):
    return True, set()
  said = {key: _flag(value[key], key, at) for key in _FLAGS if key in value}
  said |= {key: not _flag(value[key], key, at) for key in _INVERTED if key in value}
  if not said:
    return True, set()
  if len(set(said.values())) > 1:
    raise UserError(f'{at} has ' + ' and '.join(f'{key!r} {value[key]!r}' for key in said)
                    + ', which contradict each other; keep one of them.')
  learned = next(iter(said.values()))
  if learned and role != 'assistant':
    key = next(iter(said))
    raise UserError(f'{at} is a turn of the {role} with {key!r} {value[key]!r}, but only answers '
                    'of the assistant are learned; remove the key.')
  return learned, set(said)


def _flag(found: Any, key: str, at: str) -> bool:
  if isinstance(found, str) and found.strip().lower() in ('0', '1', 'true', 'false'):
    return found.strip().lower() in ('1', 'true')
  if isinstance(found, (bool, int, float)) and found in (0, 1):
    return bool(found)
  raise UserError(f'{at} has {key!r} {str(found)[:40]!r}; a turn is learned or is context only: '
                  'use true or false, 1 or 0.')


def record_flags(value: dict[str, Any], where: str) -> set[str]:
  """Keys of a record that say whether and how much it is learned."""
  used: set[str] = set()
  if _ALL_FLAGS.isdisjoint(value):
    return used
  for key in (*_FLAGS, *_INVERTED, 'sample_weight'):
    found = value.get(key)
    if isinstance(found, str):  # a table holds strings
      found = {'0': 0, '1': 1, 'false': False, 'true': True}.get(found.strip().lower())
    if found is None or (key in ('loss', 'train', 'training', 'mask', 'ignore') and not isinstance(
        found, bool)):
      continue  # "loss": 2.3 is a measure, "train": "a" a split
    if found not in (0, 1) or bool(found) == (key in _INVERTED):
      raise UserError(f'{where}: the record has {key!r} {str(found)[:40]!r}; its turns may have '
                      'such a key, but a record counts as it is: leave it out, or set repeat of '
                      'its source.')
    used.add(key)
  if isinstance(value.get('mask'), str):  # NeMo: the role that has no loss
    if role_of(value['mask'], f'{where}: mask') == 'assistant':
      raise UserError(f'{where}: mask is {value["mask"]!r}, but the answers of the assistant are '
                      'what is learned; remove the key.')
    used.add('mask')
  return used


def _pair(value: dict[str, Any], ask: list[str], answer: str, where: str) -> list[Written]:
  """A question and its answer, each a string, a list of parts, or a list of turns."""
  key = ask[0] if ask else 'input'
  asked, answered = value[key], value[answer]
  for more in _MORE:
    if more == key or keys.empty(value.get(more)):
      continue
    if not isinstance(asked, str) or not isinstance(value[more], str):
      raise UserError(f'{where}: {key} and {more} must be strings; the turn of the user is one '
                      'after the other.')
    asked = f'{asked}\n{value[more]}' if asked else value[more]
  if _is_turns(asked):
    turns = _listed(asked, key, where)
  else:
    turns = [Written('user', asked, key)]
  if _is_turns(answered):
    return turns + _listed(answered, answer, where)
  return [*turns, Written('assistant', answered, answer)]


def _is_turns(found: Any) -> bool:
  return isinstance(found, list) and bool(found) and all(
      isinstance(item, dict) and any(key in item for key in _ROLE_KEYS) for item in found)


def _with_history(found: Any, turns: list[Written], where: str) -> list[Written]:
  """Earlier rounds, [[question, answer], ...] or a list of turns, before the others."""
  found = _unquoted(found)
  if not isinstance(found, list):
    raise UserError(f'{where}: history is a {type(found).__name__}; it must be a list of '
                    '[question, answer].')
  before: list[Written] = []
  for i, item in enumerate(found):
    at = f'history[{i}]'
    if isinstance(item, dict):
      before += _listed([item], at, where)
    elif isinstance(item, list) and len(item) == 2:
      before += [Written('user', item[0], f'{at}[0]'), Written('assistant', item[1], f'{at}[1]')]
    else:
      raise UserError(f'{where}: {at} must be [question, answer].')
  system = turns[:1] if turns[0].role == 'system' else []
  return system + before + turns[len(system):]


def _with_system(text: str, key: str, turns: list[Written], where: str) -> list[Written]:
  if turns[0].role != 'system':
    return [Written('system', text, key), *turns]
  if turns[0].content != text:
    raise UserError(f'{where}: {key} and {turns[0].at} are two system prompts that differ; keep '
                    'one of them.')
  return turns


def _unquoted(found: Any) -> Any:
  """A list or object that was stored as JSON text."""
  if isinstance(found, str) and found.lstrip()[:1] in ('[', '{'):
    try:
      return json.loads(found)
    except (ValueError, RecursionError):
      return found
  return found
