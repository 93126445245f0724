"""Records to token sequences and back: ``Renderer``.

  <|im_start|>user\n Read this. <|im_end|>\n
  <|im_start|>assistant\n 13 text <|begin_of_audio|> 26 codes <|end_of_audio_new|> ...
      the rest of the text <|begin_of_quad|> the other codes <|end_of_audio_span_last|>
      <|im_end|>\n

Supervised are the assistant's content, its im_end and newline in every assistant turn that is
learned, and all of a pretraining document.

In the form 'published' (config key data.form) a turn whose content is one string has the ids that
Hugging Face's tokenizer with the added tokens gives for the string that Qwen2.5's chat template
makes of the record with an empty default system prompt: every added token in it has its id, spans
stand as they are written, and a conversation without a system turn begins with an empty one.
"""

import dataclasses
from typing import NamedTuple, Sequence

import numpy as np

from ttt_jax.audio.codec import Codec
from ttt_jax.config import DataConfig
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.tokens.tokenizer import Tokenizer
from ttt_jax.tokens.vocab import Vocabulary


class Example(NamedTuple):
  """One rendered document: token int32 [n], supervised int8 [n] (0 or 1)."""
  token: np.ndarray
  supervised: np.ndarray


class Fill(NamedTuple):
  """Silence appended to the last span of an answer, to a multiple of a number of tokens.

  A model trained this way, which decodes blocks of ``multiple`` tokens, need not predict where
  inside a block the speech ends: a span always ends at the end of a block.

  Attributes:
    silence: codes of one patch of silence (Codec.silence).
    multiple: codes and end token together become a multiple of this; 1 = no silence.
  """
  silence: tuple[int, ...] = ()
  multiple: int = 1

  @classmethod
  def from_config(cls, data: DataConfig, codec: Codec) -> 'Fill':
    """What ``data.span_fill`` asks for.

    Raises:
      UserError: it asks for silence and the codec has no patch of silence.
    """
    if data.span_fill > 1 and not codec.silence:
      raise UserError(f'config key data.span_fill is {data.span_fill}, but codec {codec.name} has '
                      'no patch of silence to fill with; set it to 1.')
    return cls(tuple(int(code) for code in codec.silence), data.span_fill)

  def after(self, codes: Sequence[int]) -> list[int]:
    """The codes to append to ``codes``."""
    missing = -(len(codes) + 1) % self.multiple
    return [self.silence[i % len(self.silence)] for i in range(missing)]


def chunks(t_ids: Sequence[int], codes: Sequence[int], text_chunk: int = 13,
           audio_chunk: int = 26) -> list[tuple[Sequence[int], Sequence[int]]]:
  """Split t text ids and a codes into n = min(ceil(t/13), ceil(a/26)) pairs (paper, section 3).

  Every pair but the last holds ``text_chunk`` ids and ``audio_chunk`` codes; the last
  holds the rest of both. Text alone or speech alone is one pair; neither is no pair.
  """
  t, a = len(t_ids), len(codes)
  if not t and not a:
    return []
  n = max(1, min(-(-t // text_chunk), -(-a // audio_chunk)))
  cut = n - 1
  pairs = [(t_ids[i * text_chunk:(i + 1) * text_chunk],
            codes[i * audio_chunk:(i + 1) * audio_chunk]) for i in range(cut)]
  return pairs + [(t_ids[cut * text_chunk:], codes[cut * audio_chunk:])]


@dataclasses.dataclass(frozen=True)
class Renderer:
  """Renders records for one vocabulary, tokenizer and chunk layout.

  Attributes:
    vocab: the id space.
    tokenizer: the text tokenizer of that id space.
    text_chunk: text tokens per chunk of an interleaved answer.
    audio_chunk: codes per chunk.
    fill: silence after the last span of an interleaved answer.
    form: config key data.form.
  """
  vocab: Vocabulary
  tokenizer: Tokenizer
  text_chunk: int = 13
  audio_chunk: int = 26
  fill: Fill = Fill()
  form: str = 'default'

  @classmethod
  def from_config(cls, data: DataConfig, vocab: Vocabulary, tokenizer: Tokenizer,
                  codec: Codec) -> 'Renderer':
    """The renderer that `ttt-jax prepare` uses under a data config; errors as in Fill."""
    return cls(vocab, tokenizer, data.text_chunk, data.audio_chunk, Fill.from_config(data, codec),
               data.form)

  def render(self, record: Record) -> Example:
    """All turns of a record as one document.

    ``fill`` applies to answers that are interleaved here, not to spans whose place the record
    itself determines.

    Raises:
      UserError: a code outside the codebook (with the record's file:line).
    """
    ids, targets = [], []
    for turn in self._turns(record):
      head, body = self._turn(turn, record)
      ids += head + body
      whole = record.type == 'PT' and turn.learned
      learn = whole or (turn.role in ('assistant', 'document') and turn.learned)
      targets += [int(whole)] * len(head) + [int(learn)] * len(body)
    return Example(np.array(ids, np.int32), np.array(targets, np.int8))

  def render_prompt(self, record: Record) -> np.ndarray:
    """Everything up to and including the last assistant header: ids int32 [n].

    Raises:
      UserError: a record without an assistant turn (a pretraining document), or a code outside
        the codebook.
    """
    turns = self._turns(record)
    last = max((i for i, turn in enumerate(turns) if turn.role == 'assistant'), default=-1)
    if last < 0:
      raise UserError(f'{record.where}: record {record.id} has no assistant turn, so it gives no '
                      'prompt to answer.')
    ids = []
    for turn in turns[:last]:
      head, body = self._turn(turn, record)
      ids += head + body
    return np.array(ids + self._header('assistant'), np.int32)

  def unrender(self, ids: Sequence[int] | np.ndarray) -> tuple[str, list[np.ndarray]]:
    """Generated ids -> (their text, the codes int32 [n] of each audio span, in order).

    Control tokens are dropped from the text. The text between spans is joined before decoding,
    since a chunk may end inside a multi-byte character. Spans without codes are left out.
    """
    ids = np.asarray(ids, np.int64)
    text = self.tokenizer.decode(ids[ids < self.tokenizer.ranks].tolist())
    audio = np.concatenate([[False], self.vocab.is_audio(ids), [False]])
    edges = np.flatnonzero(audio[1:] != audio[:-1])
    spans = [self.vocab.decode_codes(ids[a:b]) for a, b in zip(edges[::2], edges[1::2])]
    return text, [span for span in spans if span.size]

  def _turns(self, record: Record) -> tuple[Turn, ...]:
    """The turns that are rendered: an empty system turn only in the form 'published'."""
    turns = record.turns
    if self.form == 'published':
      has = turns[0].role in ('system', 'document')
      return turns if has else (Turn('system', ()), *turns)
    empty = turns[0].role == 'system' and not any(
        part.text or part.kind == 'audio' for part in turns[0].parts)
    return turns[1:] if empty else turns

  def _header(self, role: str) -> list[int]:
    """im_start role newline; encoded apart from the content, so that every prompt ends the same."""
    return [self.vocab.im_start, *self.tokenizer.encode(role + '\n')]

  def _turn(self, turn: Turn, record: Record) -> tuple[list[int], list[int]]:
    """(header, content with its ending) of one turn."""
    try:
      if self.form == 'published' and turn.written is not None:
        return self._as_written(turn.role, turn.written)
      if turn.role in ('assistant', 'document'):
        body = self._answer(turn)
      else:
        body = self._prompt(turn.parts)
    except UserError as error:
      raise UserError(f'{record.where}: {error}') from error
    if turn.role == 'document':
      return [], body
    return self._header(turn.role), [*body, self.vocab.im_end, *self.tokenizer.encode('\n')]

  def _as_written(self, role: str, text: str) -> tuple[list[int], list[int]]:
    """(header, content with its ending) of a turn with the ids of Hugging Face's tokenizer.

    The header and the text after it are one text there: line breaks at the start of the content
    are part of the header's. The header that is not learned has the length that it has alone.
    """
    if role == 'document':
      return [], self._with_added_tokens(text)
    ids = self._with_added_tokens(f'{role}\n{text}')
    size = len(self.tokenizer.encode(f'{role}\n'))
    return ([self.vocab.im_start, *ids[:size]],
            [*ids[size:], self.vocab.im_end, *self.tokenizer.encode('\n')])

  def _with_added_tokens(self, text: str) -> list[int]:
    ids: list[int] = []
    for piece in self.vocab.split(text):
      ids += self.tokenizer.encode(piece) if isinstance(piece, str) else piece
    return ids

  def _prompt(self, parts: Sequence[Part]) -> list[int]:
    vocab, ids = self.vocab, []
    for part in parts:
      if part.kind == 'text':
        ids += self.tokenizer.encode(part.text)
      else:
        ids += [vocab.begin_of_audio, *vocab.encode_codes(part.known_codes).tolist(),
                vocab.end_of_audio]
    return ids

  def _answer(self, turn: Turn) -> list[int]:
    kinds = [part.kind for part in turn.parts]
    marked = any(part.begin or part.end for part in turn.parts)
    # Text then speech is interleaved here; an answer whose parts alternate already, or whose
    # spans carry markup, keeps its own order.
    if turn.role == 'document' or marked or kinds != sorted(kinds, reverse=True):
      return self._in_place(turn.parts)
    text = ''.join(part.text for part in turn.parts if part.kind == 'text')
    codes = [part.known_codes for part in turn.parts if part.kind == 'audio']
    codes = self.vocab.encode_codes(np.concatenate(codes)).tolist() if codes else []
    pairs = chunks(self.tokenizer.encode(text), codes, self.text_chunk, self.audio_chunk)
    ids = []
    for i, (words, speech) in enumerate(pairs):
      ids += words
      last = i == len(pairs) - 1
      if speech:
        silence = self.vocab.encode_codes(self.fill.after(speech)).tolist() if last else []
        ids += self._span([*speech, *silence], last)
    return ids

  def _in_place(self, parts: Sequence[Part]) -> list[int]:
    """Spans where the record has them; of spans without markup the last is the quad one."""
    last = max((i for i, part in enumerate(parts) if part.kind == 'audio'), default=-1)
    ids = []
    for i, part in enumerate(parts):
      if part.kind == 'text':
        ids += self.tokenizer.encode(part.text)
        continue
      codes = self.vocab.encode_codes(part.known_codes).tolist()
      if part.begin or part.end:
        ids += [*self._mark(part.begin), *codes, *self._mark(part.end)]
      else:
        ids += self._span(codes, i == last)
    return ids

  def _mark(self, name: str) -> list[int]:
    """The id of written markup; a span that was cut has only one of the two."""
    return [self.vocab.id_of(name)] if name else []

  def _span(self, code_ids: list[int], quad: bool) -> list[int]:
    vocab = self.vocab
    return ([vocab.begin_of_quad, *code_ids, vocab.end_of_last] if quad else
            [vocab.begin_of_audio, *code_ids, vocab.end_of_chunk])


def truncate(example: Example, max_tokens: int, how: str, vocab: Vocabulary) -> Example | None:
  """The longest prefix of a document that has at most ``max_tokens`` and ends at a boundary.

  Args:
    example: the document.
    max_tokens: T of the rows.
    how: 'turn', after an answer of the assistant; 'span', there or after an audio span of an
      answer, and in a pretraining document between any two tokens outside its spans;
      'anywhere', after exactly ``max_tokens`` tokens.

  Returns:
    The document itself if it is short enough; None if there is no such prefix, or if nothing in
    it is supervised.
  """
  token, supervised = example
  if len(token) <= max_tokens:
    return example
  last, follows = token[:max_tokens], supervised[1:max_tokens + 1]
  learned = supervised[:max_tokens] > 0
  if how == 'anywhere':
    ends = np.arange(max_tokens) == max_tokens - 1
  else:
    ends = learned & (follows == 0)
    if how == 'span':
      ends |= learned & vocab.is_end(last)
      if supervised.all():  # a pretraining document; it must not end in a lone begin token
        ends |= ~vocab.is_audio(last) & ~vocab.is_begin(last)
  cut = int(np.flatnonzero(ends)[-1]) + 1 if ends.any() else 0
  return Example(token[:cut], supervised[:cut]) if learned[:cut].any() else None
