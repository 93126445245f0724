"""What the numbers of an evaluation mean, on answers made by hand and on a small model."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import soundfile

from tests import small_run
from ttt_jax.data import heldout, store
from ttt_jax.data.records import records as record_files
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.evaluate import evaluate, items as items_file, losses, metrics, speed, summary
from ttt_jax.generate.outputs import Answer, Span
from ttt_jax.tokens.batch import stack
from ttt_jax.train import trained_model


def item(task, reference, text, codes=(), heard=None, ended=True, reference_codes=(5, 6, 0, 0)):
  parts = (Part('text', reference),)
  if reference_codes:
    parts += (Part('audio', reference, np.array(reference_codes, np.int32)),)
  record = Record(f'{task}-{reference}', task, 'IT',
                  (Turn('user', (Part('text', '?'),)), Turn('assistant', parts)))
  spans = [Span(0, len(codes) + 1, ended, 1)] if len(codes) else []
  return metrics.Item(record, Answer(np.zeros(3, np.int32), spans, ended, 4), text,
                      np.array(codes, np.int32), heard or {})


def test_rates_are_pooled_over_words():
  items = [item('asr', '1 2 3', '1 2 3'), item('asr', '4 5', '4 5 5'), item('asr', '7', '')]
  found = metrics.words(items)
  assert found['asr_wer'] == pytest.approx(2 / 6)
  assert found['asr_exact'] == pytest.approx(1 / 3)


def test_an_answer_without_sound_loses_all_its_words():
  items = [item('tts', '1 2', '', (1,), {'reference': 'one two', 'roundtrip': '1 2',
                                         'generated': 'one two.'}),
           item('tts', '3 4', '', (), {'reference': 'three for', 'roundtrip': '3 4'})]
  found = metrics.words(items)
  assert found['tts_wer_reference'] == pytest.approx(1 / 4)
  assert found['tts_wer_roundtrip'] == 0
  assert found['tts_wer_generated'] == pytest.approx(2 / 4)


def test_spoken_answers_are_judged_beside_their_ceiling():
  items = [item('audio_qa', '1 2', '12', (1,), {'roundtrip': 'one two', 'generated': '12.'}),
           item('audio_qa', '7', '8', (1,), {'roundtrip': 'heaven', 'generated': 'seven'})]
  found = metrics.words(items)
  assert found['audio_qa_text_accuracy'] == 0.5
  assert found['audio_qa_spoken_accuracy'] == 1.0
  assert found['audio_qa_spoken_ceiling'] == 0.5


def test_free_answers_are_compared_by_words_and_every_task_has_a_score():
  items = [item('aac', 'a dog barks', 'the dog barks loudly', heard={'generated': 'a dog'}),
           item('', 'yes', 'Yes.'), item('sec', 'rain', 'wind', reference_codes=())]
  assert metrics.words(items) == pytest.approx({
      'aac_text_accuracy': 0, 'aac_text_f1': 2 * 2 / (3 + 4), 'aac_wer_generated': 1 / 3,
      'aac_spoken_accuracy': 0, 'aac_spoken_ceiling': 0, 'other_text_accuracy': 1,
      'other_text_f1': 1, 'sec_text_accuracy': 0})


def test_speech_in_several_spans_is_one_reference():
  parts = [Part(kind, 'a' if kind == 'text' else '', np.array(codes, np.int32) if codes else None)
           for kind, codes in (('text', ()), ('audio', (1, 2)), ('text', ()), ('audio', (3,)))]
  record = Record('x', '', 'IT', (Turn('user', (Part('text', '?'),)),
                                  Turn('assistant', tuple(parts))))
  one = metrics.Item(record, Answer(np.zeros(3, np.int32), [], True, 4), 'aa')
  assert one.reference_codes.tolist() == [1, 2, 3] and one.reference_text == 'aa'
  assert not metrics.is_question(Record('d', '', 'PT', (Turn('document', tuple(parts)),)))


def test_lengths_leave_out_silence_at_the_end():
  items = [item('tts', 'a', 'a', (5, 0, 6, 0, 0, 0)), item('tts', 'b', 'b', (5,), ended=False)]
  found = metrics.lengths(items, (0,), True)
  assert found['length_ratio'] == pytest.approx((3 + 1) / (2 + 2))
  assert found['spans_ended'] == 0.5
  assert 'spans_ended' not in metrics.lengths(items, (0,), False)


def test_table_for_the_terminal():
  lines = summary.table_text({'table': [['WER', 0.031, 'words'], ['a longer label', None, '']]})
  assert lines.splitlines() == ['WER             0.031  words', 'a longer label      –']


def test_pick_spreads_over_the_tasks():
  records = [item('asr', str(n), '').record for n in range(10)] + [item('tts', '9', '').record]
  picked = record_files.pick(records, 3)
  assert [record.id for record in picked] == ['asr-0', 'asr-3', 'asr-6', 'tts-9']
  assert len(record_files.pick(records, 0)) == 11


def test_losses_are_per_token_of_the_held_out_rows(workdir):
  """The text loss by hand: the likelihood of every supervised text token after clean ids."""
  run = trained_model.load(small_run.config(), workdir)
  rows = store.Rows(run.data_dir, 'heldout')
  batch = stack([rows[i] for i in range(len(rows))])
  from ttt_jax.model import staircase
  def by_hand(mode):
    """[[text nats, text tokens], [audio nats, audio tokens]] of next tokens."""
    ranges = staircase.key_ranges(batch, mode)
    hidden = run.model.hidden(run.params, batch.token, batch.position, *ranges)
    log_p = np.asarray(jax.nn.log_softmax(run.model.logits(run.params, hidden)))
    sums = np.zeros((2, 2))
    for r in range(len(rows)):
      for i in range(batch.token.shape[1] - 1):
        after = batch.token[r, i + 1]
        if batch.document[r, i] == batch.document[r, i + 1] > 0 and batch.supervised[r, i + 1]:
          sums[int(run.vocab.is_audio(after))] += -log_p[r, i, after], 1
    return sums
  found = losses.losses(run)
  (nats, count), _ = by_hand('hybrid')
  assert found['text_nll'] == pytest.approx(nats / count, rel=1e-4)
  # Two steps of training: close to not knowing anything about the codes.
  assert 3 < found['audio_bound'] < 12 and found['audio_bound_error'] < 2
  documents = ((batch.position == 0) & (batch.document > 0)).sum()
  tokens = by_hand('hybrid')[1][1]
  assert found['answer_bound'] == pytest.approx(
      (nats + found['audio_bound'] * tokens) / documents, rel=1e-4)
  as_ar = dataclasses.replace(run, config=small_run.replace(run.config, 'objective', mode='ar'))
  found, sums = losses.losses(as_ar), by_hand('ar')
  assert found == pytest.approx({
      'text_nll': sums[0][0] / sums[0][1], 'audio_nll': sums[1][0] / sums[1][1],
      'answer_nll': sums[:, 0].sum() / documents}, rel=1e-4)


def held_out(name, text, speech=(5, 6), task='audio_qa', **more):
  """A held-out record as `prepare` stores it; its speech is codes."""
  return {'id': name, 'task': task, 'messages': [
      {'role': 'user', 'content': [{'type': 'audio', 'codes': [1, 2, 3]}]},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': text},
                                        {'type': 'audio', 'codes': list(speech)}]}], **more}


def test_every_record_is_evaluated_and_no_id_is_a_path(workdir, tmp_path):
  """Answers and files of every task; documents and answers to nothing count in the losses."""
  folder = tmp_path / 'inner' / 'run'
  folder.mkdir(parents=True)
  (folder / 'checkpoints').symlink_to(workdir / 'checkpoints')
  shutil.copytree(workdir / 'data', folder / 'data')
  ids = ['../../up', str(tmp_path / 'absolute'), '1', '1', 'What is said? ' * 300, 'a\0b\n', 'CON',
         '\ud800']
  extra = [held_out(name, 'red', speech=[5, i]) for i, name in enumerate(ids)]
  tasks = ('audio_chat', 'aac', 'sec', 'asc', '../t')
  extra += [held_out('n', 'blue', task=task) for task in tasks]
  extra[-1]['messages'][0]['content'] = 'long ' * 100
  extra += [{'id': 'd1', 'text': 'A document.'}, {'id': 'n1', 'messages': [
      {'role': 'assistant', 'content': 'An answer to nothing.'}]}]
  with (folder / 'data' / 'heldout.records.jsonl').open('a') as file:
    file.writelines(json.dumps(record) + '\n' for record in extra)
  before = set(tmp_path.iterdir())
  config = small_run.replace(small_run.config(), 'evaluate', items=len(ids))
  with small_run.one_device():
    result = evaluate.evaluate(config, folder)
  assert json.loads((folder / 'evaluation.json').read_text()) == result
  assert set(tmp_path.iterdir()) == before and {path.name for path in folder.iterdir()} == {
      'checkpoints', 'data', 'samples', 'evaluation.json', 'items.jsonl', 'metrics.jsonl',
      'tensorboard'}
  lines = items_file.read(folder)
  assert [(line['task'], line['id']) for line in lines] == [
      (sample['task'], sample['id']) for sample in result['samples']]
  pooled = items_file.pooled(line['scores'] for line in lines)
  assert pooled and pooled.items() <= result['summary'].items()
  seen = set()
  for sample in result['samples']:
    for path in filter(None, sample['audio'].values()):
      assert (folder / path).resolve().is_relative_to(folder / 'samples')
      assert (folder / path).is_file() and path not in seen
      seen.add(path)
  mine = [sample for sample in result['samples'] if sample['task'] == 'audio_qa']
  assert [sample['id'] for sample in mine] == ids
  codec = trained_model.load(config, folder).codec
  for i, sample in enumerate(mine):  # each plays its own reference
    wave, _ = soundfile.read(folder / sample['audio']['roundtrip'])
    np.testing.assert_allclose(wave, codec.sound(np.array([5, i])), atol=1e-3)
  found = result['summary']
  assert found['records_without_question'] == 2 and found['prompts_too_long'] == 1
  assert {'audio_qa_text_accuracy', 'audio_chat_text_f1', 'aac_text_f1', 'sec_text_accuracy',
          'asc_text_accuracy', 'text_nll', 'audio_bound'} <= set(found)
  assert ['records without a question', '2', 'not answered; their losses count'] in result['table']


def test_speed_is_per_second_of_speech(workdir, tmp_path):
  (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
  (tmp_path / 'data').symlink_to(workdir / 'data')
  with small_run.one_device():
    found = speed.measure(small_run.config(), tmp_path, 1)
  assert summary.read_speed(tmp_path) == found and found['records'] == 2 and found['step'] == 2
  # An untrained model may answer without speech or words, but it takes time.
  assert found['summary']['rtf_text'] >= 0 and set(found['summary']) <= {'rtf_text', 'rtf_audio'}


def test_a_set_of_documents_has_losses(workdir, tmp_path):
  (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
  shutil.copytree(workdir / 'data', tmp_path / 'data')
  (tmp_path / 'data' / 'heldout.records.jsonl').write_text('{"id": "d", "text": "A document."}\n')
  with small_run.one_device():
    result = evaluate.evaluate(small_run.config(), tmp_path)
  assert set(result['summary']) == {'text_nll', 'audio_bound', 'audio_bound_error',
                                    'answer_bound', 'records_without_question'}
  assert result['samples'] == []


def test_a_held_out_recording_stays_in_its_set(tmp_path, prepared):
  shutil.copytree(prepared, tmp_path / 'data')
  record = held_out('a', 'b')
  record['messages'][0]['content'][0]['audio'] = '../../etc/passwd'
  (tmp_path / 'data' / 'heldout.records.jsonl').write_text(json.dumps(record) + '\n')
  with pytest.raises(UserError, match=r"names the recording '../../etc/passwd', which is outside"):
    heldout.load_records(tmp_path / 'data')
