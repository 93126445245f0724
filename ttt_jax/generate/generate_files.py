"""`ttt-jax generate`: answers texts, recordings or records, and writes WAV files and JSON."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ttt_jax.audio import io
from ttt_jax.config import Config
from ttt_jax.data import heldout
from ttt_jax.data.records import embedded, readers, records, tasks
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.data.records.tasks import Recording
from ttt_jax.errors import UserError
from ttt_jax.generate import live_output
from ttt_jax.generate.engine import Engine
from ttt_jax.generate.outputs import Answer
from ttt_jax.storage import files, owned
from ttt_jax.storage.names import FileNames
from ttt_jax.system.progress import Progress
from ttt_jax.train import trained_model
from ttt_jax.train.trained_model import TrainedModel

FILE = 'answers.json'


class _Asked(NamedTuple):
  """A request: the name of its files, and its record."""
  name: str
  record: Record

  @property
  def sound(self) -> str:
    return f'{self.name}.wav'


def generate_files(config: Config, workdir: str | os.PathLike, inputs: dict[str, Any],
                   out: str | os.PathLike, stream: bool = False,
                   step: int | None = None) -> list[dict[str, Any]]:
  """Answer every input and write OUT/<name>.wav and OUT/answers.json.

  An answer that reaches ``generate.max_tokens`` ends there: its entry has 'stopped': 'length',
  and a span that was open is closed by force ('ended': false). A prompt that is empty, too long
  or has an id outside the vocabulary is an error before anything is generated. Text is never
  interpreted: special tokens written in it stay text.

  Args:
    config: the generate section has the sampling parameters.
    workdir: of a trained model.
    inputs: 'text' and 'audio' (lists, answered as 'task', see ``check_inputs``), 'records' (files
      of records). Task 'pt' continues a document that begins with the text or the recording.
    out: folder, created if it does not exist.
    stream: print text and write audio while they are generated, one answer after another.
    step: of the checkpoint; None = the newest.

  Returns:
    The entries of answers.json: {'name' (of files), 'id' (of the record), 'task', 'prompt', 'text',
    'audio' (file name or None), 'stopped' ('end' or 'length'), 'spans', 'calls', 'seconds',
    'first_audio_seconds' (or None), 'ids'} per answer.

  Raises:
    UserError: inputs that the task does not answer, unreadable input, a prompt that reaches
      max_tokens, no trained model.
  """
  check_inputs(inputs['task'], inputs['text'], inputs['audio'])
  folder = owned.Output(out, 'answers', '--out', _earlier)
  run = trained_model.load(config, workdir, step=step)
  asked = _requests(run, inputs)
  settings = config.generate
  if stream:
    settings = dataclasses.replace(settings, slots=1)
  engine = Engine(run.model, run.params, run.vocab, settings, mode=config.objective.mode,
                  prompt_audio=config.objective.prompt_audio, short_lived=not stream)
  for name, record in asked:
    engine.submit(_prompt(run, record), where=f'the prompt of {name}')
  folder.claim(FILE, *(one.sound for one in asked))
  with files.writing(folder.folder):
    answers = (_streamed if stream else _gathered)(run, engine, asked, folder.folder)
  files.write_text(folder.folder / FILE, json.dumps(answers, indent=1, ensure_ascii=False) + '\n')
  folder.finish()
  return answers


def _earlier(folder: pathlib.Path) -> set[str]:
  """The files that an answers.json proves, which was written before there were markers."""
  try:
    answers = json.loads((folder / FILE).read_text(encoding='utf-8'))
    if not answers or not all({'ids', 'task', 'stopped'} <= answer.keys() for answer in answers):
      return set()  # another program's
    return {FILE, *(f'{answer["name"]}.wav' for answer in answers)}
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return set()


def _gathered(run: TrainedModel, engine: Engine, asked: list[_Asked],
              out: pathlib.Path) -> list[dict[str, Any]]:
  """Batched; each answer is written when it is complete."""
  entries = {}
  with Progress(len(asked), 'generate', unit='answers') as progress:
    for event in engine.events():
      if event.answer is not None:
        one, answer = asked[event.request], event.answer
        audio = _write_audio(run, one.sound, answer, out)
        entries[event.request] = _entry(run, one, answer, audio)
        progress.say(_line(entries[event.request]))
        progress.update(1)
  return [entries[number] for number in range(len(asked))]


def _streamed(run: TrainedModel, engine: Engine, asked: list[_Asked],
              out: pathlib.Path) -> list[dict[str, Any]]:
  """One answer after another, while it is generated."""
  entries, live = [], None
  for event in engine.events(eager=True):
    one = asked[event.request]
    if live is None:
      live = live_output.LiveOutput(run.codec, run.tokenizer, out / one.sound)
      print(f'{one.name}: {_question(one.record)} -> ', end='', flush=True)
    if event.kind == 'text' and event.ids is not None:
      print(live.text(event.ids), end='', flush=True)
    elif event.kind == 'audio' and event.ids is not None:
      live.audio(run.vocab.decode_codes(event.ids))
    elif event.answer is not None:
      audio = live.close()
      first = event.answer.first_audio
      print('' if audio is None else f'  ({audio}, first audio after {first:.2f} s)')
      entries.append(_entry(run, one, event.answer, audio and audio.name))
      live = None
  return entries


# -- requests -----------------------------------------------------------------------


def check_inputs(task: str | None, texts: Sequence[str], audio: Sequence[str]) -> None:
  """Whether --text and --audio are what a task answers.

  Raises:
    UserError: an unknown task, or inputs that it does not answer.
  """
  if not texts and not audio:
    return
  if task not in tasks.RECORDED:
    raise UserError(f'--task is {task!r}; with --text and --audio use one of '
                    f'{", ".join(tasks.RECORDED)}.')
  if task == 'pt':
    return
  if task in ('tts', 'text_chat'):
    if audio:
      raise UserError(f'task {task} answers a text, not the recording {audio[0]}; use --text.')
    return
  if not audio:
    raise UserError(f'task {task} answers a recording, not only the text {texts[0]!r}; use '
                    '--audio FILE' + ('.' if task == 'asr' else ', or --task text_chat.'))
  if task == 'asr' and texts:
    raise UserError(f'task asr answers recordings without a text; remove --text {texts[0]!r}.')
  if len(texts) > 1 and len(texts) != len(audio):
    raise UserError(f'{len(texts)} texts and {len(audio)} recordings: for task {task} a --text is '
                    'the question about a recording; give one for all, or one for each.')


def _requests(run: TrainedModel, inputs: dict[str, Any]) -> list[_Asked]:
  """The inputs as records whose last assistant turn is empty, or as documents to continue."""
  data = run.config.data
  system_prompt = functools.cache(lambda name: heldout.system_prompt(
      run.data_dir, name, data.text_chunk, data.audio_chunk))
  found: list[tuple[str, Record]] = []
  for name, text, path in _inputs(inputs['task'], inputs['text'], inputs['audio']):
    record = dataclasses.replace(_record(run, inputs['task'], text, path), id=name)
    found.append((name, tasks.with_prompt(record, system_prompt(record.task))))
  for path in inputs['records']:
    for where, value in readers.read(path):
      record = records.parse(value, where, form=data.form)
      record = run.encoded(_question_of(record), path)
      if record.turns[0].role != 'system':
        record = tasks.with_prompt(record, system_prompt(record.task))
      found.append((record.id, record))
  names = FileNames()
  return [_Asked(names.new(name), record) for name, record in found]


def _inputs(task: str, texts: Sequence[str], audio: Sequence[str]
            ) -> Iterator[tuple[str, str, str | None]]:
  """(name, text or '', path or None) of each request made of --text and --audio."""
  beside = audio and task not in ('tts', 'text_chat', 'pt')  # a text is about a recording
  if not beside:
    yield from ((f'text{i}', text, None) for i, text in enumerate(texts, 1))
  for i, path in enumerate(audio):
    text = texts[i if len(texts) > 1 else 0] if beside and texts else ''
    yield pathlib.Path(path).stem, text, path


def _record(run: TrainedModel, task: str, text: str, path: str | None) -> Record:
  """One request, in the form in which the task is trained."""
  codes = None
  if path:
    try:
      codes = run.codec.encode(*io.read(path))
    except UserError as error:
      raise UserError(f'--audio {path}: {error}') from error
  where = path or '--text'
  if task == 'pt':  # a document begins with the input; the marks say that it goes on after it
    part = Part('text', text) if codes is None else Part(
        'audio', '', codes, path, '<|begin_of_audio|>', '<|end_of_audio_new|>')
    return Record(where, task, 'PT', (Turn('document', (part,)),), where)
  speech = None if codes is None else Part('audio', codes=codes, source=path)
  if task == 'tts':  # its record is made of the speech of a text
    speech, text = Part('audio', text), ''
  record = _question_of(tasks.to_record(Recording('', speech, where, (), text), task))
  if text and not any(part.text == text for turn in record.turns for part in turn.parts):
    raise UserError(f'task {task} answers recordings without a text; remove --text {text!r}.')
  return record


def _question_of(record: Record) -> Record:
  """A record up to its last assistant turn, which is empty."""
  last = max((i for i, turn in enumerate(record.turns) if turn.role == 'assistant'), default=-1)
  if last < 0:
    raise UserError(f'{record.where}: record {record.id} has no assistant turn to answer; to '
                    'continue a document use --task pt --text.')
  return Record(record.id, record.task, record.type,
                record.turns[:last] + (Turn('assistant', ()),), record.where)


def _prompt(run: TrainedModel, record: Record) -> np.ndarray:
  """Ids int32 [n] after which the answer begins."""
  document = record.turns[0].role == 'document'
  return run.renderer.render(record).token if document else run.renderer.render_prompt(record)


# -- results ------------------------------------------------------------------------


def _write_audio(run: TrainedModel, name: str, answer: Answer,
                 out: pathlib.Path) -> str | None:
  _, spans = run.renderer.unrender(answer.ids)
  if not spans:
    return None
  io.write_wav(out / name, run.codec.sound(np.concatenate(spans)), run.codec.sample_rate)
  return name


def _question(record: Record) -> str:
  asked = [turn for turn in record.turns if turn.role in ('user', 'document')][-1:]
  return ' '.join(part.text or f'[{_source(part)}]' for turn in asked for part in turn.parts)


def _source(part: Part) -> str | None:
  return 'audio' if part.source and embedded.is_embedded(part.source) else part.source


def _entry(run: TrainedModel, asked: _Asked, answer: Answer, audio: str | None) -> dict[str, Any]:
  text, _ = run.renderer.unrender(answer.ids)
  return {'name': asked.name, 'id': asked.record.id, 'task': asked.record.task,
          'prompt': _question(asked.record),
          'text': text.strip(), 'audio': audio, 'stopped': 'end' if answer.finished else 'length',
          'calls': answer.calls, 'seconds': round(answer.seconds, 4),
          'first_audio_seconds': answer.first_audio and round(answer.first_audio, 4),
          'spans': [dataclasses.asdict(span) for span in answer.spans],
          'ids': answer.ids.tolist()}


def _line(entry: dict[str, Any]) -> str:
  return f'{entry["name"]}: {entry["prompt"]} -> {entry["text"]}' + (
      f'  ({entry["audio"]})' if entry['audio'] else '') + (
          '' if entry['stopped'] == 'end' else '  (cut at generate.max_tokens)')
