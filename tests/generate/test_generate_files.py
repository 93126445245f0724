"""`ttt-jax generate`: every task that can be trained, with the inputs that it needs."""

import json

import numpy as np
import pytest

from tests import small_run
from tests.audio.signals import babble
from ttt_jax.audio import io
from ttt_jax.data.records import tasks
from ttt_jax.errors import UserError
from ttt_jax.generate import generate_files as lib
from ttt_jax.train import train, trained_model


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, prepared):
  folder = tmp_path_factory.mktemp('generated')
  (folder / 'data').symlink_to(prepared)
  io.write_wav(folder / 'a.wav', babble(0.5, 22_050), 22_050)
  with small_run.one_device():
    train.train(small_run.config(steps=1, checkpoint_every=1), folder)
    yield folder


@pytest.fixture(scope='module')
def run(workdir):
  return trained_model.load(small_run.config(), workdir)


def request(task, text=(), audio=(), files=()):
  return {'task': task, 'text': list(text), 'audio': list(audio), 'records': list(files)}


@pytest.mark.parametrize('task', [task for task in tasks.RECORDED if task != 'pt'])
def test_a_prompt_has_the_form_of_its_training_record(run, workdir, task):
  sound = str(workdir / 'a.wav')
  codes = run.codec.encode(*io.read(sound)).tolist()
  text, audio = ([], [sound]) if task not in ('tts', 'text_chat') else (['one'], [])
  value = {'audio': sound, 'codes': codes, 'text': 'one', 'answer': 'two'}
  trained = tasks.to_record(tasks.parse_recording(value, 'a:1', task), task)
  wanted = run.renderer.render_prompt(tasks.with_prompt(trained, 'hi'))
  ((_, record),) = lib._requests(run, request(task, text, audio))
  np.testing.assert_array_equal(
      run.renderer.render_prompt(tasks.with_prompt(record, 'hi')), wanted)


def test_a_question_about_a_sound(run, workdir):
  sound = str(workdir / 'a.wav')
  for task in ('aac', 'audio_qa'):
    asked = lib._requests(run, request(task, ['What?', 'Why?'], [sound, sound]))
    assert [(name, record.turns[-2].parts[0].text) for name, record in asked] == [
        ('a', 'What?'), ('a-2', 'Why?')]


@pytest.mark.parametrize('task, text, audio, sentence', [
    ('tts', [], ['a.wav'], 'task tts answers a text, not the recording a.wav; use --text'),
    ('text_chat', ['x'], ['a.wav'], 'use --text'),
    ('asr', ['x'], [], "answers a recording, not only the text 'x'; use --audio FILE."),
    ('audio_qa', ['x'], [], 'use --audio FILE, or --task text_chat'),
    ('asr', ['x'], ['a.wav'], "remove --text 'x'"),
    ('aac', ['x', 'y'], ['a', 'b', 'c'], '2 texts and 3 recordings'),
    (None, ['x'], [], 'use one of asr, tts, audio_qa'), ('sing', ['x'], [], "--task is 'sing'")])
def test_inputs_that_a_task_does_not_answer(task, text, audio, sentence):
  with pytest.raises(UserError, match=sentence):
    lib.check_inputs(task, text, audio)


def test_documents_go_on_and_names_of_files_are_safe_and_unique(workdir, tmp_path):
  lines = [{'id': name, 'task': 'text_chat', 'prompt': name, 'response': 'a'}
           for name in ('x', 'x', 'x-2', '../up', 'text1')]
  (tmp_path / 'r.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  config = small_run.replace(small_run.config(), 'generate', max_tokens=60)
  out = tmp_path / 'in' / 'out'
  with small_run.one_device():
    answers = lib.generate_files(config, workdir, request(
        'pt', ['Once upon a time'], [str(workdir / 'a.wav')], [tmp_path / 'r.jsonl']), out)
  assert [a['id'] for a in answers] == ['text1', 'a', 'x', 'x', 'x-2', '../up', 'text1']
  names = [a['name'] for a in answers]
  assert names[:5] == ['text1', 'a', 'x', 'x-2', 'x-2-2'] and names[6] == 'text1-2'
  assert names[5].startswith('_up-') and len(set(names)) == len(names)
  assert all(answer['ids'] for answer in answers)
  assert {path.name for path in (tmp_path / 'in').iterdir()} == {'out'}
  wavs = {f'{a["name"]}.wav' for a in answers if a['audio']}
  assert {path.name for path in out.glob('*.wav')} == wavs


@pytest.mark.parametrize('entries, ours', [
    ('[{"q": 1}]', False), ('[]', False), ('{}', False), ('3', False),
    ('[{"name": "a", "ids": [], "task": "tts", "stopped": "end"}, {"q": 1}]', False),
    ('[{"name": "a", "ids": [], "task": "tts", "stopped": "end"}]', True)])
def test_answers_of_another_program_are_not_replaced(tmp_path, entries, ours):
  (tmp_path / lib.FILE).write_text(entries)
  assert lib._earlier(tmp_path) == ({lib.FILE, 'a.wav'} if ours else set())


def test_a_document_in_records_is_a_sentence(run, tmp_path):
  (tmp_path / 'r.jsonl').write_text('{"text": "A document."}\n')
  with pytest.raises(UserError, match='to continue a document use --task pt'):
    lib._requests(run, request(None, files=[tmp_path / 'r.jsonl']))
