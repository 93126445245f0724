"""Make data/demo_tokens: the demo's corpus as codes, for machines without the voice.

  python tools/keep_tokens.py --speech demo/speech --codec demo/data/codec --out data/demo_tokens

Needs a demo whose speech was made and prepared. Training on the result takes the same
config; only the original voice is missing, as ceiling and to listen to.
"""

import argparse
import pathlib

from ttt_jax.audio import codec as codecs
from ttt_jax.data.export import inline_codes

LISTS = ('train_short', 'train_strings', 'train_questions', 'train_question_texts', 'train_chat',
         'validation_strings', 'validation_questions', 'validation_chat',
         'heldout_strings', 'heldout_questions', 'heldout_chat', 'tables')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--speech', type=pathlib.Path, required=True)
  parser.add_argument('--codec', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  codec = codecs.load(args.codec)
  for name in LISTS:
    count = inline_codes(args.speech / f'{name}.jsonl', args.out / f'{name}.jsonl', codec)
    print(f'{name}: {count} lines')


if __name__ == '__main__':
  main()
