"""`ttt-jax generate`: answers texts, recordings or records, and writes WAV files and JSON."""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import numpy as np

from ttt_jax.audio import io
from ttt_jax.config import Config
from ttt_jax.data import heldout
from ttt_jax.data.records import readers, records, tasks
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.generate import live_output
from ttt_jax.generate.engine import Engine
from ttt_jax.generate.outputs import Answer
from ttt_jax.storage import files, owned
from ttt_jax.system.progress import Progress
from ttt_jax.train import trained_model
from ttt_jax.train.trained_model import TrainedModel

FILE = 'answers.json'


def generate_files(config: Config, workdir: str | os.PathLike, inputs: dict[str, Any],
                   out: str | os.PathLike, stream: bool = False) -> list[dict[str, Any]]:
  """Answer every input and write OUT/<name>.wav and OUT/answers.json.

  An answer that reaches ``generate.max_tokens`` ends there: its entry has 'stopped': 'length',
  and a span that was open is closed by force ('ended': false). A prompt that is empty, too long
  or has an id outside the vocabulary is an error before anything is generated. Text is never
  interpreted: special tokens written in it stay text.

  Args:
    config: the generate section has the sampling parameters.
    workdir: of a trained model.
    inputs: 'text' and 'audio' (lists, answered as 'task'), 'records' (files of records).
    out: folder, created if it does not exist.
    stream: print text and write audio while they are generated, one answer after another.

  Returns:
    The entries of answers.json: {'name', 'task', 'prompt', 'text', 'audio' (file name or None),
    'stopped' ('end' or 'length'), 'spans', 'calls', 'seconds', 'first_audio_seconds' (or
    None), 'ids'} per answer.

  Raises:
    UserError: unreadable input, a prompt that reaches max_tokens, no trained model.
  """
  folder = owned.Output(out, 'answers', '--out', _earlier)
  run = trained_model.load(config, workdir)
  asked = _requests(run, inputs)
  settings = config.generate
  if stream:
    settings = dataclasses.replace(settings, slots=1)
  engine = Engine(run.model, run.params, run.vocab, settings, mode=config.objective.mode,
                  prompt_audio=config.objective.prompt_audio, short_lived=not stream)
  for record in asked:
    engine.submit(run.renderer.render_prompt(record), where=f'the prompt of {record.id}')
  folder.claim(FILE, *(_sound_name(record) for record in asked))
  with files.writing(folder.folder):
    answers = (_streamed if stream else _gathered)(run, engine, asked, folder.folder)
  files.write_text(folder.folder / FILE, json.dumps(answers, indent=1, ensure_ascii=False) + '\n')
  folder.finish()
  return answers


def _earlier(folder: pathlib.Path) -> set[str]:
  """The files that an answers.json proves, which was written before there were markers."""
  try:
    answers = json.loads((folder / FILE).read_text(encoding='utf-8'))
    return {FILE, *(f'{answer["name"]}.wav' for answer in answers
                    if {'ids', 'task', 'stopped'} <= answer.keys())} if answers else {FILE}
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return set()


def _sound_name(record: Record) -> str:
  return f'{record.id}.wav'


def _gathered(run: TrainedModel, engine: Engine, asked: list[Record],
              out: pathlib.Path) -> list[dict[str, Any]]:
  """Batched; each answer is written when it is complete."""
  entries = {}
  with Progress(len(asked), 'generate', unit='answers') as progress:
    for event in engine.events():
      if event.answer is not None:
        record, answer = asked[event.request], event.answer
        audio = _write_audio(run, record, answer, out)
        entries[event.request] = _entry(run, record, answer, audio)
        progress.say(_line(entries[event.request]))
        progress.update(1)
  return [entries[number] for number in range(len(asked))]


def _streamed(run: TrainedModel, engine: Engine, asked: list[Record],
              out: pathlib.Path) -> list[dict[str, Any]]:
  """One answer after another, while it is generated."""
  entries, live = [], None
  for event in engine.events(eager=True):
    record = asked[event.request]
    if live is None:
      live = live_output.LiveOutput(run.codec, run.tokenizer, out / _sound_name(record))
      print(f'{record.id}: {_question(record)} -> ', end='', flush=True)
    if event.kind == 'text' and event.ids is not None:
      print(live.text(event.ids), end='', flush=True)
    elif event.kind == 'audio' and event.ids is not None:
      live.audio(run.vocab.decode_codes(event.ids))
    elif event.answer is not None:
      audio = live.close()
      first = event.answer.first_audio
      print('' if audio is None else f'  ({audio}, first audio after {first:.2f} s)')
      entries.append(_entry(run, record, event.answer, audio and audio.name))
      live = None
  return entries


def _requests(run: TrainedModel, inputs: dict[str, Any]) -> list[Record]:
  """The inputs as records whose last assistant turn is empty."""
  task = inputs['task']
  data = run.config.data
  system_prompt = functools.cache(lambda name: heldout.system_prompt(
      run.data_dir, name, data.text_chunk, data.audio_chunk))
  named: list[tuple[str, Part]] = []
  for i, text in enumerate(inputs['text'], 1):
    named.append((f'text{i}', Part('text', text)))
  for path in inputs['audio']:
    codes = run.codec.encode(*io.read(path))
    named.append((pathlib.Path(path).stem, Part('audio', codes=codes, source=path)))
  asked = [Record(name, task, 'IT', (Turn('user', (part,)), Turn('assistant', ())), name)
           for name, part in named]
  if asked:
    prompt = system_prompt(task)
    asked = [tasks.with_prompt(record, prompt) for record in asked]
  for path in inputs['records']:
    for where, value in readers.read(path):
      record = run.encoded(_question_of(records.parse(value, where)), path)
      if record.turns[0].role != 'system':
        record = tasks.with_prompt(record, system_prompt(record.task))
      asked.append(record)
  return _unique(asked)


def _question_of(record: Record) -> Record:
  """A record up to its last assistant turn, which is empty."""
  last = max((i for i, turn in enumerate(record.turns) if turn.role == 'assistant'), default=-1)
  if last < 0:
    raise UserError(f'{record.where}: record {record.id} has no assistant turn to answer.')
  return Record(record.id, record.task, record.type,
                record.turns[:last] + (Turn('assistant', ()),), record.where)


def _unique(asked: list[Record]) -> list[Record]:
  """Records with unique ids that can be file names: duplicates get a number."""
  seen: dict[str, int] = {}
  out = []
  for record in asked:
    name = ''.join(c if c.isalnum() or c in '-_.' else '_' for c in record.id)
    seen[name] = seen.get(name, 0) + 1
    if seen[name] > 1:
      name = f'{name}-{seen[name]}'
    out.append(dataclasses.replace(record, id=name))
  return out


def _write_audio(run: TrainedModel, record: Record, answer: Answer,
                 out: pathlib.Path) -> str | None:
  _, spans = run.renderer.unrender(answer.ids)
  if not spans:
    return None
  name = _sound_name(record)
  io.write_wav(out / name, run.codec.sound(np.concatenate(spans)), run.codec.sample_rate)
  return name


def _question(record: Record) -> str:
  asked = [turn for turn in record.turns if turn.role == 'user'][-1:]
  return ' '.join(part.text or f'[{part.source}]' for turn in asked for part in turn.parts)


def _entry(run: TrainedModel, record: Record, answer: Answer, audio: str | None) -> dict[str, Any]:
  text, _ = run.renderer.unrender(answer.ids)
  return {'name': record.id, 'task': record.task, 'prompt': _question(record),
          'text': text.strip(), 'audio': audio, 'stopped': 'end' if answer.finished else 'length',
          'calls': answer.calls, 'seconds': round(answer.seconds, 4),
          'first_audio_seconds': answer.first_audio and round(answer.first_audio, 4),
          'spans': [dataclasses.asdict(span) for span in answer.spans],
          'ids': answer.ids.tolist()}


def _line(entry: dict[str, Any]) -> str:
  return f'{entry["name"]}: {entry["prompt"]} -> {entry["text"]}' + (
      f'  ({entry["audio"]})' if entry['audio'] else '') + (
          '' if entry['stopped'] == 'end' else '  (cut at generate.max_tokens)')
