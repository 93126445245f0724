"""The corpus of the small comparison of training objectives (`make paper`): spoken digit strings.

  python tools/paper_corpus.py --out paper/speech

Three kinds of tasks with answers of several chunks of text and speech: transcription and reading
aloud of digit strings ("3 1 4", said "three one four"), and spoken questions: "what comes after
three one four?" has the answer "4 2 5": every digit plus one, 0 after 9. tools/speak.py reads all
of it aloud.

Files in DIR (an audio path is relative to DIR):
  sentences.jsonl               every utterance, as speak.py reads it
  wav/, recordings.jsonl        every utterance, as speak.py wrote it
  train_strings.jsonl           recordings: strings of 1 to 6 digits, the training answers too
  train_short.jsonl             those of 1 and 2 digits
  train_questions.jsonl         records, task audio_qa: spoken question, written and spoken answer
  train_question_texts.jsonl    recordings of the training questions, with the digits as text
  train_chat.jsonl              records, task text_chat: "3 1 4" -> "4 2 5"
  documents.jsonl               pretraining documents, task pt: several training strings each
  validation_strings.jsonl, validation_questions.jsonl   to choose settings on
  heldout_strings.jsonl, heldout_questions.jsonl         the test set, for numbers to report
  long_strings.jsonl            strings of 8 to 10 digits: longer than all that is trained on

No held-out string, and no answer to a held-out question, is a run of digits of anything in the
training lists, nor of a string of the other held-out set.
"""

import argparse
import pathlib
import random
import subprocess
import sys

import demo_corpus

SETS = ('train', 'validation', 'heldout')


def after(digits: str) -> str:
  """'394' -> '405': every digit plus one, 0 after 9."""
  return ''.join(str((int(digit) + 1) % 10) for digit in digits)


def draw(strings: int, questions: int, heldout: int, seed: int,
         test_seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """(strings, digits that are asked about), each by name of the set.

  Args:
    strings: training strings of 3 to 6 digits that are no answers.
    questions: training questions about 2 to 6 digits.
    heldout: strings, and questions, in each of the two held-out sets.
    seed: of training and validation set.
    test_seed: of the test set.
  """
  drawn = demo_corpus.draw_strings(strings, 2 * heldout, seed, test_seed)
  found = dict(zip(SETS, drawn))
  asked = {name: found[name][heldout:] for name in SETS[1:]}
  held = {digits for name in SETS[1:] for digits in found[name]}
  held |= {after(digits) for digits in held}
  clean = lambda digits: not demo_corpus.heldout_inside(digits, held)
  choose = random.Random(f'questions {seed}')
  short = [f'{number:02d}' for number in range(100)]
  choose.shuffle(short)
  train = [digits for digits in found['train'] if clean(digits) and clean(after(digits))]
  asked['train'] = (short[:questions // 5] + train)[:questions]
  return {'train': [digits for digits in found['train'] if clean(digits)],
          **{name: found[name][:heldout] for name in SETS[1:]}}, asked


def draw_long(count: int, seed: int) -> list[str]:
  """Distinct strings of 8 to 10 digits, lengths in turn."""
  choose = random.Random(f'long {seed}')
  found: dict[str, None] = {}
  while len(found) < count:
    found[''.join(choose.choices('0123456789', k=8 + len(found) % 3))] = None
  return list(found)


def question(digits: str) -> dict:
  """The utterance of a question."""
  return {'id': f'q{digits}', 'text': demo_corpus.written(digits),
          'spoken': f'what comes after {demo_corpus.spoken(digits)}?'}


def string(digits: str) -> dict:
  """The utterance of a string."""
  return {'id': f'd{digits}', 'text': demo_corpus.written(digits),
          'spoken': demo_corpus.spoken(digits) + '.'}


def question_record(digits: str) -> dict:
  answer = demo_corpus.written(after(digits))
  return {'id': f'q{digits}', 'task': 'audio_qa', 'messages': [
      {'role': 'user', 'content': [
          {'type': 'audio', 'audio': f'wav/q{digits}.wav', 'text': demo_corpus.written(digits)}]},
      {'role': 'assistant', 'content': [
          {'type': 'text', 'text': answer},
          {'type': 'audio', 'audio': f'wav/d{after(digits)}.wav', 'text': answer}]}]}


def chat_record(digits: str) -> dict:
  return {'id': f't{digits}', 'task': 'text_chat', 'messages': [
      {'role': 'user', 'content': demo_corpus.written(digits)},
      {'role': 'assistant', 'content': demo_corpus.written(after(digits))}]}


def documents(items: list[dict], seed: int, times: int = 3, pieces: int = 4) -> list[dict]:
  """Pretraining documents: every utterance ``times`` times, ``pieces`` in a document."""
  order = random.Random(f'documents {seed}')
  said = items * times
  order.shuffle(said)
  return [{'id': f'document{number}', 'pieces': [
              {'text': item['text'], 'audio': f'wav/{item["id"]}.wav'}
              for item in said[start:start + pieces]]}
          for number, start in enumerate(range(0, len(said), pieces))]


def lists(strings: dict[str, list[str]], asked: dict[str, list[str]], long: list[str],
          seed: int) -> dict[str, list[dict]]:
  """File name -> lines, the utterances in 'sentences.jsonl'."""
  short = [str(i) for i in range(10)] + [f'{i:02d}' for i in range(100)]
  spoken = {name: [string(digits) for digits in strings[name]] for name in SETS}
  answers = {name: [string(after(digits)) for digits in asked[name]] for name in SETS}
  train = list({item['id']: item for item in
                [string(digits) for digits in short] + spoken['train'] + answers['train']}.values())
  questions = {name: [question(digits) for digits in asked[name]] for name in SETS}
  every = train + [item for name in SETS[1:] for item in spoken[name] + answers[name]]
  every += [item for name in SETS for item in questions[name]]
  every += [string(digits) for digits in long]
  out = {'sentences.jsonl': list({item['id']: item for item in every}.values()),
         'train_short.jsonl': demo_corpus.recordings([i for i in train if len(i['id']) < 4]),
         'train_strings.jsonl': demo_corpus.recordings(train),
         'train_question_texts.jsonl': demo_corpus.recordings(questions['train']),
         'train_chat.jsonl': [chat_record(digits) for digits in asked['train']],
         'long_strings.jsonl': demo_corpus.recordings([string(digits) for digits in long]),
         'documents.jsonl': documents(train, seed)}
  for name in SETS:
    out[f'{name}_questions.jsonl'] = [question_record(digits) for digits in asked[name]]
    if name != 'train':
      out[f'{name}_strings.jsonl'] = demo_corpus.recordings(spoken[name])
  return out


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR')
  parser.add_argument('--strings', type=int, default=900, help='training strings of 3 to 6 digits')
  parser.add_argument('--questions', type=int, default=300, help='training questions')
  parser.add_argument('--heldout', type=int, default=40,
                      help='strings, and questions, in each of the two held-out sets')
  parser.add_argument('--seed', type=int, default=0, help='of training and validation set')
  parser.add_argument('--test-seed', type=int, default=1, help='of the test set')
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--voice', default='', metavar='PATH.onnx', help='any Piper voice')
  parser.add_argument('--lists-only', action='store_true', help='write the lists, say nothing')
  args = parser.parse_args()
  if not 4 <= args.heldout <= 200 or not 4 <= args.questions <= args.strings <= 5000:
    print('paper_corpus.py: --heldout takes 4 to 200, --strings at most 5000 and --questions 4 to '
          f'--strings, not {args.heldout}, {args.strings} and {args.questions}.', file=sys.stderr)
    return 2
  made = lists(*draw(args.strings, args.questions, args.heldout, args.seed, args.test_seed),
               draw_long(args.heldout, args.test_seed), args.seed)
  args.out.mkdir(parents=True, exist_ok=True)
  demo_corpus.write_lines(args.out / 'sentences.jsonl', made.pop('sentences.jsonl'))
  if not args.lists_only:
    # A process of its own: the voice is GPL-3 and hands over files only.
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name('speak.py')), '--sentences',
         str(args.out / 'sentences.jsonl'), '--out', str(args.out), '--processes',
         str(args.processes), '--voice', args.voice], check=False)
    if done.returncode:
      return done.returncode
  for name, lines in made.items():
    demo_corpus.write_lines(args.out / name, lines)
  print('; '.join(f'{name}: {len(lines)}' for name, lines in made.items()))
  return 0


if __name__ == '__main__':
  sys.exit(main())
