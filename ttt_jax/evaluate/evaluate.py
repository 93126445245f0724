"""Evaluation on held-out records: losses, words, sounds.

Writes workdir/evaluation.json (summary, table, samples) and workdir/samples/*.wav, which
the report reads. All rates are pooled over the corpus: errors over reference words.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.audio import asr_judges, io
from ttt_jax.config import Config, ObjectiveConfig
from ttt_jax.data import interleave, store
from ttt_jax.data.prepare import prepare
from ttt_jax.data.records import records as record_files
from ttt_jax.data.records.records import Part, Record
from ttt_jax.generate.engine import Engine
from ttt_jax.generate.outputs import Answer
from ttt_jax.objective import hybrid
from ttt_jax.storage import files
from ttt_jax.system.progress import Progress
from ttt_jax.tokens.batch import Batch, stack
from ttt_jax.train import metrics, trained_model
from ttt_jax.train.trained_model import TrainedModel

_LOSS_ROWS = 16  # rows per forward pass of the losses
# What the judge hears, by task. Of a transcript the words are known without it.
_JUDGED = {'tts': ('reference', 'roundtrip', 'generated'), 'audio_qa': ('roundtrip', 'generated')}


@dataclasses.dataclass
class Item:
  """One held-out record, what was generated for it, and what a judge heard."""
  record: Record
  answer: Answer | None = None
  text: str = ''
  codes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
  heard: dict[str, str] = dataclasses.field(default_factory=dict)  # by kind of audio

  @property
  def question(self) -> Part:
    return _last_part(self.record, 'user')

  @property
  def reference_text(self) -> str:
    return ''.join(p.text for p in self.record.turns[-1].parts if p.kind == 'text').strip()

  @property
  def spoken_text(self) -> str:
    """What the reference's speech says: its transcript, or the text it goes with."""
    audio = self.reference_audio
    return audio.text if audio is not None and audio.text else self.reference_text

  @property
  def reference_audio(self) -> Part | None:
    spoken = [p for p in self.record.turns[-1].parts if p.kind == 'audio']
    return spoken[0] if spoken else None


def _last_part(record: Record, role: str) -> Part:
  return [turn for turn in record.turns if turn.role == role][-1].parts[-1]


def evaluate(config: Config, workdir: str | os.PathLike) -> dict[str, Any]:
  """Measure the newest checkpoint of ``workdir``.

  Args:
    config: evaluate and generate sections; the rest as trained.
    workdir: of the run.

  Returns:
    What evaluation.json holds: {'step', 'summary': {metric: value}, 'table': [[label,
    value, note]], 'samples': [...]}.
  """
  workdir = pathlib.Path(workdir)
  run = trained_model.load(config, workdir)
  records = prepare.load_records(run.data_dir, config.evaluate.split)
  judge = asr_judges.create(config.evaluate.judge, config.evaluate.judge_model)
  summary = losses(run)
  items = answer(run, record_files.pick(records, config.evaluate.items))
  listen(run, items, judge, workdir / 'samples')
  summary |= words(items) | lengths(items, run.codec.silence, config.objective.mode == 'hybrid')
  samples = [_sample(run, item) for item in items]
  result = {'step': run.step, 'summary': summary, 'table': table(summary, config),
            'samples': samples}
  files.write_text(workdir / 'evaluation.json',
                    json.dumps(result, indent=1, ensure_ascii=False) + '\n')
  with metrics.Writer(workdir) as writer:
    writer.write(run.step, {f'eval/{name}': value for name, value in summary.items()})
  return result


# -- losses -------------------------------------------------------------------------


def losses(run: TrainedModel) -> dict[str, float]:
  """Text NLL with clean audio, and the audio bound, both per token over the held-out rows.

  The bound is the 1/p-weighted masked loss over all supervised audio (nothing kept clean
  by BANOM or PPM, and the method's own mask_floor whatever was trained with), averaged over
  ``evaluate.bound_samples`` draws of the noise.
  """
  config = run.config
  objective = config.objective
  rows = store.Rows(run.data_dir, config.evaluate.split)
  clean = dataclasses.replace(objective, banom=1.0)
  noisy = dataclasses.replace(objective, banom=0.0, ppm=0.0,
                              mask_floor=ObjectiveConfig.mask_floor)
  text, audio = np.zeros(2), []
  sums = _make_sums(run)
  key = jax.random.fold_in(jax.random.key(config.seed), 0xE7A1)
  groups = [stack([rows[i] for i in range(at, min(at + _LOSS_ROWS, len(rows)))])
            for at in range(0, len(rows), _LOSS_ROWS)]
  for batch in groups:
    text += np.asarray(sums(run.params, batch, key, clean))[:2]
  for draw in range(config.evaluate.bound_samples if objective.mode != 'ar' else 0):
    total = np.zeros(2)
    for batch in groups:
      total += np.asarray(sums(run.params, batch, jax.random.fold_in(key, draw), noisy))[2:]
    audio.append(total[0] / max(total[1], 1))
  out = {'text_nll': text[0] / text[1]} if text[1] else {}
  if audio:
    out['audio_bound'] = float(np.mean(audio))
    if len(audio) > 1:
      out['audio_bound_error'] = float(np.std(audio, ddof=1) / np.sqrt(len(audio)))
  return out


def _make_sums(run: TrainedModel) -> Callable[..., jax.Array]:
  """[text nats, text targets, weighted audio nats, maskable audio] of a batch."""
  def sums(params, batch: Batch, key, objective: ObjectiveConfig):
    targets = hybrid.corrupt(batch, run.vocab, objective, key)
    # Per token instead of per document: undo the share that corrupt writes into the weight.
    per_token = targets._replace(self_weight=jnp.where(targets.masked, 1.0 / targets.rate, 0.0))
    _, found = hybrid.loss_and_sums(run.model, params, batch, per_token, objective, 1.0)
    return jnp.stack([found.text_nll, found.text_targets, found.diffusion,
                      jnp.sum(targets.maskable).astype(jnp.float32)])
  return jax.jit(sums, static_argnames='objective')


# -- answers ------------------------------------------------------------------------


def answer(run: TrainedModel, records: list[Record]) -> list[Item]:
  """Generate an answer to every record."""
  config = run.config
  prompts = [interleave.render_prompt(record, run.vocab, run.tokenizer, config.data.text_chunk,
                                      config.data.audio_chunk) for record in records]
  engine = Engine(run.model, run.params, run.vocab, dataclasses.replace(
      config.generate, slots=min(config.evaluate.batch, max(len(prompts), 1))),
                  mode=config.objective.mode, prompt_audio=config.objective.prompt_audio)
  for prompt in prompts:
    engine.submit(prompt)
  items = []
  with Progress(len(prompts), 'generate', unit='answers') as progress:
    for event in engine.events():
      if event.kind == 'done':
        text, codes = interleave.unrender(event.answer.ids, run.vocab, run.tokenizer)
        codes = np.concatenate(codes) if codes else np.zeros(0, np.int32)
        items.append((event.request,
                      Item(records[event.request], event.answer, text.strip(), codes)))
        progress.update(1)
  return [item for _, item in sorted(items, key=lambda pair: pair[0])]


def listen(run: TrainedModel, items: list[Item], judge: asr_judges.Recogniser | None,
           folder: pathlib.Path) -> None:
  """Write the waveforms of every item and let the judge hear those of ``_JUDGED``.

  Three kinds: 'reference' (the original voice), 'roundtrip' (the reference's codes decoded:
  the codec's ceiling) and 'generated'.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with Progress(len(items), 'listen', unit='answers') as progress:
    for item in items:
      judged = _JUDGED.get(item.record.task, ()) if judge else ()
      reference = item.reference_audio
      sounds = {'generated': item.codes}
      if reference is not None:
        sounds['roundtrip'] = reference.codes
      for kind, codes in sounds.items():
        if len(codes):
          waveform = run.codec.sound(codes)
          io.write_wav(folder / f'{item.record.id}.{kind}.wav', waveform, run.codec.sample_rate)
          if kind in judged:
            item.heard[kind] = judge.transcribe(waveform, run.codec.sample_rate)
      if 'reference' in judged and reference is not None and reference.source:
        item.heard['reference'] = judge.transcribe(*io.read(run.data_dir / reference.source))
      progress.update(1)


# -- numbers ------------------------------------------------------------------------


def words(items: list[Item]) -> dict[str, float]:
  """ASR word error rate, answer accuracies, and the judge's word error rates by kind."""
  out = {}
  asr = [i for i in items if i.record.task == 'asr']
  if asr:
    out['asr_wer'] = _wer((i.reference_text, i.text) for i in asr)
    out['asr_exact'] = _mean(_same(i.text, i.reference_text) for i in asr)
  for task in ('audio_qa', 'text_chat'):
    mine = [i for i in items if i.record.task == task]
    if mine:
      out[f'{task}_text_accuracy'] = _mean(_same(i.text, i.reference_text) for i in mine)
  heard = any(i.heard for i in items)
  for task, kinds in _JUDGED.items():
    mine = [i for i in items if i.record.task == task] if heard else []
    for kind in kinds:
      # An answer without a sound was heard as nothing: all of its words are missing.
      if any(kind in i.heard for i in mine):
        out[f'{task}_wer_{kind}'] = _wer((i.spoken_text, i.heard.get(kind, '')) for i in mine)
    if task == 'audio_qa' and mine:
      out['audio_qa_spoken_accuracy'] = _mean(
          _same(i.heard.get('generated', ''), i.spoken_text) for i in mine)
      out['audio_qa_spoken_ceiling'] = _mean(
          _same(i.heard.get('roundtrip', ''), i.spoken_text) for i in mine)
  return out


def lengths(items: list[Item], silence: tuple[int, ...], hybrid_mode: bool) -> dict[str, float]:
  """How answers and spans end, and how long the speech is beside the reference, both
  without the silence at their ends.

  Only the hybrid's spans are opened by the model and closed by it or by a limit.
  """
  every = [span for i in items for span in i.answer.spans] if hybrid_mode else []
  spoken = [i for i in items if i.reference_audio is not None]
  out = {'answers_finished': _mean(i.answer.finished for i in items)}
  if every:
    out['spans_ended'] = _mean(span.ended for span in every)
  if spoken:
    out['length_ratio'] = sum(_audible(i.codes, silence) for i in spoken) / sum(
        _audible(i.reference_audio.codes, silence) for i in spoken)
  return out


def _audible(codes: np.ndarray, silence: tuple[int, ...]) -> int:
  """Number of codes up to the last one that is not silence."""
  return int(np.flatnonzero(~np.isin(codes, silence)).max(initial=-1)) + 1


def _wer(pairs) -> float:
  counts = np.array([asr_judges.word_errors(reference, heard) for reference, heard in pairs])
  errors, total = counts.sum(0)
  return float(errors / max(total, 1))


def _same(text: str, reference: str) -> bool:
  return asr_judges.normalise_words(text) == asr_judges.normalise_words(reference)


def _mean(values) -> float:
  return float(np.mean([float(value) for value in values]))


_PERCENT = (
    ('asr_wer', 'ASR word error rate', 'transcripts of held-out recordings'),
    ('asr_exact', 'ASR exact transcripts', ''),
    ('audio_qa_text_accuracy', 'spoken questions: text of the answer', 'exact match'),
    ('audio_qa_spoken_accuracy', 'spoken questions: speech of the answer', 'as the judge hears it'),
    ('audio_qa_spoken_ceiling', 'the same, codec round trip', 'its ceiling'),
    ('text_chat_text_accuracy', 'written questions', 'exact match'),
    ('tts_wer_reference', 'judge: original voice', 'first ceiling of read-aloud text'),
    ('tts_wer_roundtrip', 'judge: codec round trip', 'second ceiling'),
    ('tts_wer_generated', 'judge: generated speech', 'word error rate of read-aloud text'),
    ('spans_ended', 'spans that end by themselves', ''),
    ('answers_finished', 'answers that finish', 'before the length limit'),
)


def table(summary: dict[str, float], config: Config) -> list[list[str]]:
  """Rows (label, value, note) for people."""
  rows = []
  if 'text_nll' in summary:
    rows.append(['text loss', f'{summary["text_nll"]:.3f}', 'nats per text token, clean audio'])
  if 'audio_bound' in summary:
    error = summary.get('audio_bound_error')
    value = f'{summary["audio_bound"]:.2f}' + (f' ± {error:.2f}' if error is not None else '')
    rows.append(['audio bound', value, 'nats per audio token'])
  for name, label, note in _PERCENT:
    if name in summary:
      rows.append([label, f'{100 * summary[name]:.1f} %',
                   note.replace('the judge', config.evaluate.judge)])
  if 'length_ratio' in summary:
    rows.append(['length of speech', f'{summary["length_ratio"]:.2f}', 'times the reference'])
  return rows


def _sample(run: TrainedModel, item: Item) -> dict[str, Any]:
  """What the report shows of one item; paths are relative to the workdir."""
  def data(part: Part | None):
    return f'{run.config.data.path}/{part.source}' if part is not None and part.source else None
  made = lambda kind, there: f'samples/{item.record.id}.{kind}.wav' if there else None
  question = item.question
  reference = item.reference_audio
  return {
      'task': item.record.task, 'id': item.record.id, 'question_text': question.text,
      'reference_text': item.reference_text, 'generated_text': item.text,
      'heard_text': item.heard.get('generated'), 'correct': _same(item.text, item.reference_text),
      'calls': item.answer.calls,
      'audio': {'question': data(question) if question.kind == 'audio' else None,
                'reference': data(reference),
                'roundtrip': made('roundtrip', reference is not None and len(reference.codes)),
                'generated': made('generated', len(item.codes))}}
