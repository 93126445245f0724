"""The demo's corpus: spoken digit strings and arithmetic questions, with their answers.

  python tools/demo_corpus.py --out data/demo

Writes the sentences, has tools/speak.py read them aloud, then lists what is for training
and what is held out. Written text is digits between single spaces ("3 1 4"), said
"three one four"; a question is written "3 + 4" and said "what is three plus four?".

Files in DIR (an audio path is relative to DIR):
  sentences.jsonl            every utterance, as speak.py reads it
  wav/, recordings.jsonl     every utterance, as speak.py wrote it
  train_short.jsonl          recordings: all strings of one and of two digits
  train_strings.jsonl        recordings: the short ones, and random strings of 3 to 6 digits
  validation_strings.jsonl   recordings: other strings of 3 to 6 digits, to choose a recipe on
  heldout_strings.jsonl      recordings: others again, the test set: looked at last
  train_questions.jsonl      records, task audio_qa: spoken question -> written and spoken answer
  validation_questions.jsonl the same for the questions of the validation set
  heldout_questions.jsonl    the same for those of the test set
  train_question_texts.jsonl recordings of the training questions with "3 + 4" as their text
  train_chat.jsonl           records, task text_chat: "3 + 4" -> "3 + 4 = 7", training
                             questions only
  validation_chat.jsonl, heldout_chat.jsonl    the same for the other two sets
  tables.jsonl               pretraining documents: lines of arithmetic, "3 + 4 = 7", over ALL
                             questions; leave it out to hold the questions out in writing, too

What held out means. Two sets are held out of training, and from each other: recipes are
chosen on the validation set (--seed), and the test set (--test-seed) is for numbers to
report, so nothing is chosen on it.
- Strings: no held-out string stands in a training string, neither whole nor as a run of
  digits inside a longer one; nor does a validation string in a test string, or the other
  way round. Whoever joins recordings to longer ones keeps that up by dropping a join that
  contains a held-out string (`heldout_inside` below).
- Questions: a held-out (operation, a, b) occurs in no wording and no form, spoken or
  written, in the train_ lists. Its mirror image (4 + 3 for 3 + 4; 9 - 7 for 9 - 2) is always
  in training, and so are its operands at their places and its answer, in other questions of
  the same operation.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import re
import subprocess
import sys

WORDS = 'zero one two three four five six seven eight nine'.split()
WORDINGS = ('what is {}?', 'how much is {}?', '{}?')
OPERATIONS = {'+': 'plus', '-': 'minus'}
LENGTHS = (3, 4, 5, 6)

Question = collections.namedtuple('Question', 'operation a b')


def written(digits: str) -> str:
  """'314' -> '3 1 4'."""
  return ' '.join(digits)


def spoken(digits: str) -> str:
  """'314' -> 'three one four'."""
  return ' '.join(WORDS[int(digit)] for digit in digits)


def heldout_inside(digits: str, heldout: set[str]) -> bool:
  """Whether any held-out string is a run of digits of `digits` (or all of it)."""
  return any(digits[i:i + n] in heldout for n in LENGTHS for i in range(len(digits) - n + 1))


def draw_strings(train: int, heldout: int, seed: int,
                 test_seed: int) -> tuple[list[str], list[str], list[str]]:
  """Random distinct strings of 3 to 6 digits, lengths in turn: (training, validation, test)."""
  def distinct(draw, count, refused):
    found = {}  # a dict keeps the order
    while len(found) < count:
      digits = ''.join(draw.choices('0123456789', k=LENGTHS[len(found) % len(LENGTHS)]))
      if digits not in found and not refused(digits):
        found[digits] = None
    return list(found)

  draw = random.Random(f'strings {seed}')
  validation = distinct(draw, heldout, lambda digits: False)
  seen = set(validation)
  test = distinct(
      random.Random(f'test {test_seed}'), heldout, lambda digits: heldout_inside(digits, seen) or
      any(heldout_inside(other, {digits}) for other in validation))
  seen |= set(test)
  return distinct(draw, train, lambda digits: heldout_inside(digits, seen)), validation, test


def questions() -> list[Question]:
  """All 155: sums of two digits, and differences that are not negative."""
  return ([Question('+', a, b) for a in range(10) for b in range(10)] +
          [Question('-', a, b) for a in range(10) for b in range(a + 1)])


def answer(question: Question) -> int:
  operation, a, b = question
  return a + b if operation == '+' else a - b


def mirror(question: Question) -> Question:
  """The question that trades places: a + b -> b + a, and a - b -> a - (a - b)."""
  operation, a, b = question
  return Question('+', b, a) if operation == '+' else Question('-', a, a - b)


def hold_out(seed: int, test_seed: int,
             share: float = 0.12) -> tuple[set[Question], set[Question]]:
  """A fixed choice of questions by hash: (validation, test), each question with what is needed
  to answer it in training."""
  everything = questions()

  def parts(question):  # what must still occur in training after this one has gone
    operation, a, b = question
    return (operation, 'a', a), (operation, 'b', b), (operation, 'answer', answer(question))

  left = collections.Counter(part for question in everything for part in parts(question))
  gone = set()

  def choose(seed):
    held = set()
    order = sorted(everything, key=lambda question: hashlib.sha256(
        f'{seed} {question.a} {question.operation} {question.b}'.encode()).digest())
    for question in order:
      if len(held) == round(share * len(everything)):
        break
      alone = mirror(question) in gone | {question}
      if question not in gone and not alone and all(left[part] > 1 for part in parts(question)):
        held.add(question)
        gone.add(question)
        left.subtract(parts(question))
    return held

  return choose(str(seed)), choose(f'test {test_seed}')


def sentences_of(strings: list[str], wordings: int) -> list[dict]:
  """Every utterance: {'id', 'text', 'spoken'}."""
  short = [str(i) for i in range(10)] + [f'{i:02d}' for i in range(100)]
  out = [{'id': f'd{digits}', 'text': written(digits), 'spoken': spoken(digits) + '.'}
         for digits in short + strings]
  for question in questions():
    operation, a, b = question
    said = f'{WORDS[a]} {OPERATIONS[operation]} {WORDS[b]}'
    out += [{'id': question_id(question, i), 'text': f'{a} {operation} {b}',
             'spoken': WORDINGS[i].format(said)} for i in range(wordings)]
  return out


def worked(question: Question) -> str:
  """The written answer: the sum with its result. A model that hears a question writes down
  what it heard before it says what that makes."""
  return f'{question.a} {question.operation} {question.b} = {written(str(answer(question)))}'


def question_id(question: Question, wording: int) -> str:
  return f'q{wording}_{question.a}{OPERATIONS[question.operation]}{question.b}'


def question_records(asked: list[Question], wordings: int) -> list[dict]:
  """Spoken question -> written and spoken answer, as records of task audio_qa."""
  out = []
  for question in asked:
    digits, text = str(answer(question)), f'{question.a} {question.operation} {question.b}'
    for i in range(wordings):
      key = question_id(question, i)
      out.append({'id': key, 'task': 'audio_qa', 'messages': [
          {'role': 'user', 'content': [
              {'type': 'audio', 'audio': f'wav/{key}.wav', 'text': text}]},
          {'role': 'assistant', 'content': [
              {'type': 'text', 'text': worked(question)},
              {'type': 'audio', 'audio': f'wav/d{digits}.wav', 'text': written(digits)}]}]})
  return out


def chat_records(asked: list[Question]) -> list[dict]:
  """Written question -> written answer, as records of task text_chat."""
  return [{'id': f't_{question.a}{OPERATIONS[question.operation]}{question.b}',
           'task': 'text_chat', 'messages': [
               {'role': 'user', 'content': [
                   {'type': 'text', 'text': f'{question.a} {question.operation} {question.b}'}]},
               {'role': 'assistant', 'content': [
                   {'type': 'text', 'text': worked(question)}]}]}
          for question in asked]


def table_documents(seed: int, times: int = 10, lines: int = 5) -> list[dict]:
  """Every fact ``times`` times, shuffled into documents of ``lines`` lines."""
  draw = random.Random(f'tables {seed}')
  facts = [worked(question) for question in questions() * times]
  draw.shuffle(facts)
  return [{'id': f'table{number}', 'text': '\n'.join(facts[start:start + lines])}
          for number, start in enumerate(range(0, len(facts), lines))]


def recordings(items: list[dict]) -> list[dict]:
  return [{'id': item['id'], 'audio': f'wav/{item["id"]}.wav', 'text': item['text']}
          for item in items]


def manifests(sentences: list[dict], strings: dict[str, list[str]],
              asked: dict[str, list[Question]], wordings: int) -> dict[str, list[dict]]:
  """File name -> lines, for everything but the sentences themselves.

  Args:
    sentences: from ``sentences_of``.
    strings, asked: of 'train', 'validation' and 'heldout'.
    wordings: ways to ask each question.
  """
  out = {'train_short.jsonl': recordings([s for s in sentences if re.fullmatch('d..?', s['id'])])}
  for name in strings:
    ids = {f'd{digits}' for digits in strings[name]}
    out[f'{name}_strings.jsonl'] = (out['train_short.jsonl'] if name == 'train' else []) + (
        recordings([s for s in sentences if s['id'] in ids]))
    out[f'{name}_questions.jsonl'] = question_records(asked[name], wordings)
    out[f'{name}_chat.jsonl'] = chat_records(asked[name])
  ids = {question_id(question, i) for question in asked['train'] for i in range(wordings)}
  out['train_question_texts.jsonl'] = recordings([s for s in sentences if s['id'] in ids])
  return out


def write_lines(path: pathlib.Path, lines: list[dict]) -> None:
  temporary = path.with_suffix('.part')
  temporary.write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines),
                       encoding='utf-8')
  temporary.replace(path)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR')
  parser.add_argument('--train', type=int, default=900, help='training strings of 3 to 6 digits')
  parser.add_argument('--heldout', type=int, default=60,
                      help='strings of 3 to 6 digits in each of the two held-out sets')
  parser.add_argument('--wordings', type=int, default=2, choices=(1, 2, 3),
                      help='ways to ask each question')
  parser.add_argument('--seed', type=int, default=0, help='of training and validation set')
  parser.add_argument('--test-seed', type=int, default=1, help='of the test set')
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--voice', default='', metavar='PATH.onnx', help='any Piper voice')
  parser.add_argument('--lists-only', action='store_true', help='write the lists, say nothing')
  args = parser.parse_args()
  if not 4 <= args.heldout <= 400 or not 4 <= args.train <= 20000:
    print('demo_corpus.py: --heldout takes 4 to 400 strings and --train 4 to 20000, not '
          f'{args.heldout} and {args.train}.', file=sys.stderr)
    return 2
  train, validation, test = draw_strings(args.train, args.heldout, args.seed, args.test_seed)
  held = hold_out(args.seed, args.test_seed)
  inside = lambda chosen: [question for question in questions() if question in chosen]
  asked = {'train': inside(set(questions()) - held[0] - held[1]), 'validation': inside(held[0]),
           'heldout': inside(held[1])}
  sentences = sentences_of(train + validation + test, args.wordings)
  args.out.mkdir(parents=True, exist_ok=True)
  write_lines(args.out / 'sentences.jsonl', sentences)
  if not args.lists_only:
    # A process of its own: the voice is GPL-3 and hands over files only.
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name('speak.py')), '--sentences',
         str(args.out / 'sentences.jsonl'), '--out', str(args.out), '--processes',
         str(args.processes), '--voice', args.voice], check=False)
    if done.returncode:
      return done.returncode
  strings = {'train': train, 'validation': validation, 'heldout': test}
  lists = manifests(sentences, strings, asked, args.wordings)
  lists['tables.jsonl'] = table_documents(args.seed)
  for name, lines in lists.items():
    write_lines(args.out / name, lines)
  print('; '.join(f'{name}: {len(lines)}' for name, lines in lists.items()))
  return 0


if __name__ == '__main__':
  sys.exit(main())
