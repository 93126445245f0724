"""A Record as the token sequence that the model sees, and back.

  <|im_start|>user\n Read this. <|im_end|>\n
  <|im_start|>assistant\n 13 text <|begin_of_audio|> 26 codes <|end_of_audio_new|> ...
      the rest of the text <|begin_of_quad|> the other codes <|end_of_audio_span_last|>
      <|im_end|>\n

Supervised are the assistant's content, its im_end and newline in every assistant turn,
and all of a pretraining document.
"""

from typing import NamedTuple, Sequence

import numpy as np

from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.tokens.tokenizer import Tokenizer
from ttt_jax.tokens.vocab import Vocabulary


class Example(NamedTuple):
  """One rendered document: token int32 [n], supervised int8 [n] (0 or 1)."""
  token: np.ndarray
  supervised: np.ndarray


class Fill(NamedTuple):
  """Silence after the speech of an answer's last span.

  TrainedModel so, a model that decodes blocks of ``multiple`` tokens need not guess a length:
  a span ends at the end of a block, with silence where there is nothing more to say.

  Attributes:
    silence: codes of one patch of silence (Codec.silence).
    multiple: codes and end token together become a multiple of this; 1 = no silence.
  """
  silence: tuple[int, ...] = ()
  multiple: int = 1

  def after(self, codes: Sequence[int]) -> list[int]:
    """The codes to append to ``codes``."""
    missing = -(len(codes) + 1) % self.multiple
    return [self.silence[i % len(self.silence)] for i in range(missing)]


def chunks(t_ids: Sequence[int], codes: Sequence[int], text_chunk: int = 13,
           audio_chunk: int = 26) -> list[tuple[Sequence[int], Sequence[int]]]:
  """Deal t text ids and a codes into n = min(ceil(t/13), ceil(a/26)) pairs.

  Every pair but the last holds ``text_chunk`` ids and ``audio_chunk`` codes; the last
  holds all that remains of both. Speech without text is one pair, so is text without
  speech; nothing at all is no pair.
  """
  t, a = len(t_ids), len(codes)
  if not t and not a:
    return []
  n = max(1, min(-(-t // text_chunk), -(-a // audio_chunk)))
  cut = n - 1
  pairs = [(t_ids[i * text_chunk:(i + 1) * text_chunk],
            codes[i * audio_chunk:(i + 1) * audio_chunk]) for i in range(cut)]
  return pairs + [(t_ids[cut * text_chunk:], codes[cut * audio_chunk:])]


def render(record: Record, vocab: Vocabulary, tokenizer: Tokenizer, text_chunk: int = 13,
           audio_chunk: int = 26, fill: Fill = Fill()) -> Example:
  """The whole record as one document.

  ``fill`` acts on answers that are interleaved here, not on spans that stand where they
  were written.

  Raises:
    UserError: a code outside the codebook (with the record's file:line).
  """
  ids, targets = [], []
  for turn in record.turns:
    head, body = _turn(turn, record, vocab, tokenizer, text_chunk, audio_chunk, fill)
    ids += head + body
    learn = turn.role in ('assistant', 'document')
    targets += [int(record.type == 'PT')] * len(head) + [int(learn or record.type == 'PT')
                                                         ] * len(body)
  return Example(np.array(ids, np.int32), np.array(targets, np.int8))


def render_prompt(record: Record, vocab: Vocabulary, tokenizer: Tokenizer, text_chunk: int = 13,
                  audio_chunk: int = 26) -> np.ndarray:
  """Everything up to and including the last assistant header: ids int32 [n].

  Raises:
    UserError: a pretraining document, which has no assistant turn.
  """
  last = max((i for i, turn in enumerate(record.turns) if turn.role == 'assistant'), default=-1)
  if last < 0:
    raise UserError(f'{record.where}: record {record.id} has no assistant turn, so it gives no '
                    'prompt to answer.')
  ids = []
  for turn in record.turns[:last]:
    head, body = _turn(turn, record, vocab, tokenizer, text_chunk, audio_chunk)
    ids += head + body
  return np.array(ids + header('assistant', vocab, tokenizer), np.int32)


def truncate(example: Example, most: int, how: str, vocab: Vocabulary) -> Example | None:
  """The longest start of a document that has at most ``most`` tokens and ends at a boundary.

  Args:
    example: the document.
    most: tokens.
    how: 'turn', after an answer of the assistant; 'span', there or behind an audio span of an
      answer, and in a pretraining document between any two tokens outside its spans;
      'anywhere', after exactly ``most`` tokens.

  Returns:
    The document itself if it is short enough; None if it has no such start, or if nothing
    that is learned stands before the cut.
  """
  token, supervised = example
  if len(token) <= most:
    return example
  last, follows = token[:most], supervised[1:most + 1]
  learned = supervised[:most] > 0
  if how == 'anywhere':
    ends = np.arange(most) == most - 1
  else:
    ends = learned & (follows == 0)
    if how == 'span':
      ends |= learned & vocab.is_end(last)
      if supervised.all():  # a pretraining document; a begin token alone would be a false start
        ends |= ~vocab.is_audio(last) & ~vocab.is_begin(last)
  cut = int(np.flatnonzero(ends)[-1]) + 1 if ends.any() else 0
  return Example(token[:cut], supervised[:cut]) if learned[:cut].any() else None


def header(role: str, vocab: Vocabulary, tokenizer: Tokenizer) -> list[int]:
  """im_start role newline; encoded apart from the content, so that a prompt always ends so."""
  return [vocab.im_start, *tokenizer.encode(role + '\n')]


def _turn(turn: Turn, record: Record, vocab: Vocabulary, tokenizer: Tokenizer, text_chunk: int,
          audio_chunk: int, fill: Fill = Fill()) -> tuple[list[int], list[int]]:
  """(header, content with its ending) of one turn."""
  try:
    if turn.role in ('assistant', 'document'):
      body = _answer(turn, vocab, tokenizer, text_chunk, audio_chunk, fill)
    else:
      body = _prompt(turn.parts, vocab, tokenizer)
  except UserError as error:
    raise UserError(f'{record.where}: {error}') from error
  if turn.role == 'document':
    return [], body
  return header(turn.role, vocab, tokenizer), [*body, vocab.im_end, *tokenizer.encode('\n')]


def _prompt(parts: Sequence[Part], vocab: Vocabulary, tokenizer: Tokenizer) -> list[int]:
  ids = []
  for part in parts:
    if part.kind == 'text':
      ids += tokenizer.encode(part.text)
    else:
      ids += [vocab.begin_of_audio, *vocab.encode_codes(part.codes).tolist(), vocab.end_of_audio]
  return ids


def _answer(turn: Turn, vocab: Vocabulary, tokenizer: Tokenizer, text_chunk: int,
            audio_chunk: int, fill: Fill) -> list[int]:
  kinds = [part.kind for part in turn.parts]
  marked = any(part.begin for part in turn.parts)
  if turn.role == 'document' or marked or kinds != sorted(kinds, reverse=True):
    return _in_place(turn.parts, vocab, tokenizer)
  text = ''.join(part.text for part in turn.parts if part.kind == 'text')
  codes = [part.codes for part in turn.parts if part.kind == 'audio']
  codes = vocab.encode_codes(np.concatenate(codes)).tolist() if codes else []
  pairs = chunks(tokenizer.encode(text), codes, text_chunk, audio_chunk)
  ids = []
  for i, (words, speech) in enumerate(pairs):
    ids += words
    last = i == len(pairs) - 1
    if speech:
      silence = vocab.encode_codes(fill.after(speech)).tolist() if last else []
      ids += _span([*speech, *silence], last, vocab)
  return ids


def _in_place(parts: Sequence[Part], vocab: Vocabulary, tokenizer: Tokenizer) -> list[int]:
  """Spans where they were written; of spans without markup the last is the quad one."""
  last = max((i for i, part in enumerate(parts) if part.kind == 'audio'), default=-1)
  ids = []
  for i, part in enumerate(parts):
    if part.kind == 'text':
      ids += tokenizer.encode(part.text)
    else:
      quad = part.begin == '<|begin_of_quad|>' if part.begin else i == last
      ids += _span(vocab.encode_codes(part.codes).tolist(), quad, vocab)
  return ids


def _span(code_ids: list[int], quad: bool, vocab: Vocabulary) -> list[int]:
  return ([vocab.begin_of_quad, *code_ids, vocab.end_of_last] if quad else
          [vocab.begin_of_audio, *code_ids, vocab.end_of_chunk])


def unrender(ids: Sequence[int], vocab: Vocabulary, tokenizer: Tokenizer
             ) -> tuple[str, list[np.ndarray]]:
  """Generated ids -> (their text, the codes int32 [n] of each audio span, in order).

  Control tokens leave the text; the pieces of text between spans are joined before
  decoding, since a chunk may cut a character in two. Spans without codes are left out.
  """
  ids = np.asarray(ids, np.int64)
  text = tokenizer.decode(ids[ids < tokenizer.ranks].tolist())
  audio = np.concatenate([[False], vocab.is_audio(ids), [False]])
  edges = np.flatnonzero(audio[1:] != audio[:-1])
  spans = [vocab.decode_codes(ids[a:b]) for a, b in zip(edges[::2], edges[1::2])]
  return text, [span for span in spans if span.size]
