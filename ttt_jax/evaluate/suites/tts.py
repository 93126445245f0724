"""Suite 'tts': texts read aloud; error rates as a recogniser hears them, DNSMOS, and similarity.

  Seed-TTS       lines utt|prompt_text|prompt_wav|text[|gt_wav] of meta.lst, in folders such as en/
                 and zh/; lines utt|text[|prompt_wav] as well. Paths are relative to the list.
  plain lists    .txt files with a text per line

Every number of the model stands beside two of the recording gt_wav, where a list has one: the
original, and the codec's round trip of it, which no model with this codec exceeds.

The text and nothing else is what the model reads: the prompt recording is the voice that a speaker
similarity is computed with. evaluate.tts_prompt='turn' puts it before the text as an earlier turn
(its text, then its speech), for models that take up the voice of earlier turns.
"""

from collections.abc import Sequence
import pathlib
import re
from typing import Any

from ttt_jax.audio import io, quality
from ttt_jax.audio.codec import Codec
from ttt_jax.audio.recogniser import Recogniser, Sound
from ttt_jax.config import Config
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import asr, reading
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score, Suite
from ttt_jax.tokens import words

# The sounds that are scored: prefix of counts -> end of the metrics' labels.
ROWS = {'': '', 'roundtrip_': ', codec', 'original_': ', original'}
_DNSMOS = {'ovrl': 'DNSMOS', 'sig': '  signal', 'bak': '  background', 'p808': '  P.808'}
_LISTS = ('meta.lst', 'hardcase.lst')  # of a folder; others of Seed-TTS are of voice conversion
_LANGUAGE = re.compile(r'[a-z]{2,3}')
_SCRIPTS = ((re.compile('[\u3041-\u30ff]'), 'ja'), (re.compile('[\uac00-\ud7af]'), 'ko'),
            (re.compile('[\u4e00-\u9fff]'), 'zh'))


class Tts(Suite):
  """Text to speech."""
  name = 'tts'
  about = 'Seed-TTS lists: WER or CER as heard, DNSMOS, speaker similarity'
  task = 'tts'

  def __init__(self, config: Config, task: str = ''):
    self.hears = config.evaluate.judge != 'none'
    super().__init__(config, task)
    settings = config.evaluate
    self._dnsmos = None if settings.dnsmos == 'none' else quality.DnsMos(settings.dnsmos)
    self._speaker = quality.Speaker(settings.speaker_model) if settings.speaker_model else None
    if not self.hears and self._dnsmos is None and self._speaker is None:
      raise UserError("suite tts has nothing to score: config keys evaluate.judge and "
                      "evaluate.dnsmos are 'none', and evaluate.speaker_model is empty.")
    # Scores of recordings by (line, codec): they are the same for all checkpoints.
    self._known: dict[tuple[str, str], dict[str, float | str]] = {}

  @property
  def settings(self) -> dict[str, Any]:
    settings = self.config.evaluate
    return {**super().settings, 'words': settings.words, 'dnsmos': settings.dnsmos,
            'speaker_model': settings.speaker_model, 'tts_prompt': settings.tts_prompt}

  def judges(self, judge: Recogniser | None) -> dict[str, Any]:
    out = super().judges(judge)
    for name, one in (('dnsmos', self._dnsmos), ('speaker', self._speaker)):
      if one is not None:
        out[name] = one.describe()
    return out

  def items(self, data: pathlib.Path) -> list[Item]:
    prompted = self.config.evaluate.tts_prompt == 'turn'
    out = [item for path, group in _lists(data)
           for item in _read(path, group, prompted, prompted or self._speaker is not None)]
    used = 'an earlier turn' if prompted else 'not given to the model'
    if any(item.details['prompt'] for item in out):
      self.notes.append(f'Prompt recordings are {used} (evaluate.tts_prompt).')
    if self._speaker is not None and not any(item.details['prompt'] for item in out):
      raise UserError(f'config key evaluate.speaker_model is set, but the lists of {data} name no '
                      'prompt recordings to compare voices with.')
    return out

  def score(self, item: Item, reply: Reply) -> Score:
    sounds: dict[str, Sound] = {}
    if len(reply.waveform):
      sounds[''] = reply.waveform, reply.rate
    counts: dict[str, float] = {'texts': 1, 'no_speech': float(not sounds)}
    shown: dict[str, Any] = {}
    original, known = item.details['original'], {}
    keys: dict[str, tuple[str, str]] = {}
    if original:
      codec = reply.codec
      keys = {'original_': (item.record.where, ''), 'roundtrip_': (item.record.where, codec.name)}
      known = {row: self._known[key] for row, key in keys.items() if key in self._known}
      new = [row for row in keys if row not in known]
      if new:
        sounds |= _of_recording(original, codec, new, item.record.where)
    heard = self._hear(list(sounds.values()), reply, item.language)
    for (row, sound), text in zip(sounds.items(), heard):
      known[row] = self._measure(item, sound, text)
      if row:
        self._known[keys[row]] = known[row]
    if '' not in known:  # all words are deletions
      known[''] = self._measure(item, None, '')
    for row, found in known.items():
      shown |= {f'{row}heard': value for name, value in found.items() if name == 'heard'}
      counts |= {f'{row}{name}': value for name, value in found.items()
                 if not isinstance(value, str)}
    return Score(counts, shown)

  def _hear(self, sounds: list[Sound], reply: Reply, language: str) -> list[str]:
    """The transcripts of all sounds, in one batch."""
    if not self.hears:
      return [''] * len(sounds)
    assert reply.judge is not None, 'a suite that hears has a judge'
    return reply.judge.transcribe_all(sounds, language)

  def _measure(self, item: Item, sound: Sound | None, heard: str) -> dict[str, float | str]:
    """The counts of one sound, and what was heard; ``sound``: None if there is none."""
    out: dict[str, float | str] = {}
    if self.hears:
      counts = asr.error_counts(item.references[0], heard, self.config.evaluate.words)
      unit = asr.unit_of(item.references[0], self.config.evaluate.words)
      out |= counts | {f'{unit}_sum': counts[f'{unit}_errors'] / counts[f'{unit}_words'],
                       'heard': heard}
    scores = self._dnsmos.score(*sound) if self._dnsmos is not None and sound is not None else {}
    if scores:
      out |= {f'dnsmos_{name}': value for name, value in scores.items()} | {'dnsmos_n': 1}
    if self._speaker is not None and sound is not None and item.details['prompt']:
      prompt = io.read(item.details['prompt'])
      out |= {'similarity': self._speaker.similarity(sound, prompt), 'similarity_n': 1}
    return out

  def metrics(self, results: Sequence[Result]) -> list[Metric]:
    has = lambda name: any(name in one.counts for one in results)
    out: list[Metric] = []
    for unit in ('wer', 'cer'):
      for row, what in ROWS.items():
        if not has(f'{row}{unit}_words'):
          continue
        total, short = f'{row}{unit}_words', f'{unit.upper()} as heard{what}'
        out.append(Metric(f'{row}{unit}', short, (f'{row}{unit}_errors', total), digits=2,
                          lower=True))
        if not row:
          out += [Metric(f'{unit}_{kind}', f'  {kind}', (f'{unit}_{kind}', total), digits=2,
                         lower=True) for kind in asr.KINDS]
          out.append(Metric(f'{unit}_mean', '  mean of the texts', (f'{unit}_sum', f'{unit}_texts'),
                            digits=2, lower=True, note='as Seed-TTS averages'))
    for row, what in ROWS.items():
      for name, label in _DNSMOS.items():
        if has(f'{row}dnsmos_{name}') and (not row or name == 'ovrl'):
          out.append(Metric(f'{row}dnsmos_{name}', label + what,
                            (f'{row}dnsmos_{name}', f'{row}dnsmos_n'), scale=1, unit='', digits=3))
    for row, what in ROWS.items():
      if has(f'{row}similarity'):
        out.append(Metric(f'{row}similarity', 'similarity' + what,
                          (f'{row}similarity', f'{row}similarity_n'), scale=1, unit='', digits=3))
    return [*out, Metric('no_speech', 'answers without speech', ('no_speech', 'texts'), lower=True)]


def _of_recording(path: str, codec: Codec, rows: Sequence[str], where: str) -> dict[str, Sound]:
  """The original recording and its round trip, as far as ``rows`` names them."""
  waveform, rate = io.read(path)
  out: dict[str, Sound] = {}
  if 'original_' in rows:
    out['original_'] = waveform, rate
  if 'roundtrip_' in rows:
    try:
      out['roundtrip_'] = codec.sound(codec.encode(waveform, rate)), codec.sample_rate
    except UserError as error:
      raise UserError(f'{where}: {path} cannot be encoded: {error}') from error
  return out


# -- lists ----------------------------------------------------------------------------------


def _lists(data: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
  """(list, group) of what ``data`` names.

  Raises:
    UserError: a folder without lists.
  """
  reading.require(data)
  if data.is_file():
    return [(data, '')]
  found = [(folder / name, folder) for folder in (data, *sorted(data.iterdir())) if folder.is_dir()
           for name in _LISTS if (folder / name).is_file()]
  if found:
    groups = [('' if folder == data else folder.name) +
              ('' if path.stem == 'meta' else f' {path.stem}') for path, folder in found]
    return [(path, group.strip()) for (path, _), group in zip(found, groups)]
  texts = sorted(data.glob('*.txt'))
  if not texts:
    raise UserError(f'--data {data} has no list of texts; expected meta.lst of Seed-TTS, in it or '
                    'in folders such as en/ and zh/, or .txt files with a text per line.')
  return [(path, path.stem if len(texts) > 1 else '') for path in texts]


def _read(path: pathlib.Path, group: str, prompted: bool, needs_prompt: bool) -> list[Item]:
  """The items of one list.

  Args:
    path: of the list.
    group: of its items.
    prompted: the prompt recording becomes a turn before the text.
    needs_prompt: prompt recordings are read, so they must exist.
  """
  try:
    lines = path.read_text(encoding='utf-8-sig').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read as text: {error}.') from error
  folder = path.parent.name.lower()
  of_folder = folder if _LANGUAGE.fullmatch(folder) and path.suffix != '.txt' else ''
  out, seen = [], {}
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    where = f'{path}:{number}'
    fields = [line.strip()] if path.suffix == '.txt' else [one.strip() for one in line.split('|')]
    name, prompt_text, prompt, text, original = _fields(fields, where, path.stem, number)
    if not words.tokens(text, 'paper') or not words.tokens(text):
      raise UserError(f'{where}: the text {text!r} has no words to be read; correct or remove it.')
    if name in seen:
      raise UserError(f'{where}: the name {name!r} stands in line {seen[name]} already.')
    seen[name] = number
    place = lambda one: str(path.parent / one) if one else ''
    for field, needed in ((prompt, needs_prompt), (original, True)):
      if field and needed and not pathlib.Path(place(field)).is_file():
        raise UserError(f'{where}: there is no recording {place(field)}; paths are relative to the '
                        'list.')
    if prompted and not (prompt and prompt_text):
      raise UserError(f"{where}: config key evaluate.tts_prompt is 'turn', and this line has no "
                      'prompt text and recording.')
    turns = (Turn('user', (Part('text', text),)), Turn('assistant', ()))
    if prompted:
      spoken = Part('audio', prompt_text, source=place(prompt))
      turns = (Turn('user', (Part('text', prompt_text),)),
               Turn('assistant', (Part('text', prompt_text), spoken)), *turns)
    language = of_folder or next((code for script, code in _SCRIPTS if script.search(text)), '')
    out.append(Item(name, Record(name, 'tts', 'IT', turns, where), (text,), group,
                    {'prompt': place(prompt), 'original': place(original)}, language))
  if not out:
    raise UserError(f'{path} is empty; expected a text per line.')
  return out


def _fields(fields: list[str], where: str, stem: str, number: int
            ) -> tuple[str, str, str, str, str]:
  """(name, prompt text, prompt recording, text, original recording) of a line; '' if absent."""
  match fields:
    case [text]:
      if where.rpartition(':')[0].endswith('.txt'):
        return f'{stem}-{number}', '', '', text, ''
    case [name, text]:
      return name, '', '', text, ''
    case [name, text, prompt]:
      return name.removesuffix('.wav'), '', prompt, text, ''
    case [name, prompt_text, prompt, text]:
      return name, prompt_text, prompt, text, ''
    case [name, prompt_text, prompt, text, original]:
      return name, prompt_text, prompt, text, original
  raise UserError(f'{where}: the line has {len(fields)} fields between "|"; expected '
                  'utt|prompt_text|prompt_wav|text[|gt_wav] as in Seed-TTS, or '
                  'utt|text[|prompt_wav].')
