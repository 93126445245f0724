"""What the numbers of an evaluation mean, on answers made by hand and on a small model."""

import json

import jax
import numpy as np
import pytest

from tests import small_run
from ttt_jax.data import store
from ttt_jax.data.records import records as record_files
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.evaluate import evaluate, losses, metrics, summary
from ttt_jax.generate.outputs import Answer, Span
from ttt_jax.tokens.batch import stack
from ttt_jax.train import train, trained_model


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


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, prepared):
  folder = tmp_path_factory.mktemp('evaluated')
  (folder / 'data').symlink_to(prepared)
  with small_run.one_device():
    train.train(small_run.config(steps=2, checkpoint_every=2), folder)
    yield folder


def test_losses_are_per_token_of_the_held_out_rows(workdir):
  """The text loss by hand: the likelihood of every supervised text token after clean ids."""
  run = trained_model.load(small_run.config(), workdir)
  rows = store.Rows(run.data_dir, 'heldout')
  batch = stack([rows[i] for i in range(len(rows))])
  from ttt_jax.model import staircase
  ranges = staircase.key_ranges(batch)
  hidden = run.model.hidden(run.params, batch.token, batch.position, *ranges)
  log_p = np.asarray(jax.nn.log_softmax(run.model.logits(run.params, hidden)))
  nats = count = 0
  for r in range(len(rows)):
    for i in range(batch.token.shape[1] - 1):
      follows = batch.document[r, i] == batch.document[r, i + 1] > 0
      if follows and batch.supervised[r, i + 1] and not run.vocab.is_audio(batch.token[r, i + 1]):
        nats -= log_p[r, i, batch.token[r, i + 1]]
        count += 1
  found = losses.losses(run)
  assert found['text_nll'] == pytest.approx(nats / count, rel=1e-4)
  # Two steps of training: close to not knowing anything about the codes.
  assert 3 < found['audio_bound'] < 12 and found['audio_bound_error'] < 2


def test_the_written_evaluation_names_files_that_exist(workdir):
  result = evaluate.evaluate(small_run.config(), workdir)
  assert json.loads((workdir / 'evaluation.json').read_text()) == result
  for sample in result['samples']:
    for path in filter(None, sample['audio'].values()):
      assert (workdir / path).is_file()
