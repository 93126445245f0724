"""The id space: text, the audio marker, the codec's codes, the mask, two end tokens.

Text-to-Talk (arXiv 2509.20072) extends Qwen2.5's tokenizer in this order. Small vocabularies
(bytes and a 2,048-code codec) have the same order, so that one comparison gives the class of an
id everywhere: ``id >= audio_threshold`` is audio.

  0 .. text_ranks-1        text (BPE ranks, or the 256 bytes)
  + 22                     Qwen2.5's special tokens
  + 19                     multimodal control tokens
  + 1                      <|audio|>, the threshold
  + codebook_size          <|audio_0|> ...
  + 3                      <|mask_token|>, <|end_of_audio_new|>, <|end_of_audio_span_last|>
"""

import dataclasses
import hashlib
import json
import re
from typing import Annotated, Any, Iterator

import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.storage import schema

QWEN_TEXT_RANKS = 151_643
BYTE_TEXT_RANKS = 256
TEXT_RANKS = {'bytes': BYTE_TEXT_RANKS, 'qwen2.5': QWEN_TEXT_RANKS}  # by config key vocab.text
GLM4_CODEBOOK_SIZE = 16_384

# Names as in Qwen2.5's tokenizer_config.json.
QWEN_SPECIALS = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>',
    '<|object_ref_start|>', '<|object_ref_end|>', '<|box_start|>', '<|box_end|>',
    '<|quad_start|>', '<|quad_end|>', '<|vision_start|>', '<|vision_end|>',
    '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>', '<tool_call>', '</tool_call>',
    '<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>', '<|fim_pad|>',
    '<|repo_name|>', '<|file_sep|>',
)
CONTROLS = tuple(
    f'<|{name}|>' for name in (
        'begin_of_image', 'end_of_image', 'context_of_image',
        'begin_of_video', 'end_of_video', 'context_of_video',
        'begin_of_patch', 'end_of_patch', 'context_of_patch',
        'begin_of_audio', 'end_of_audio', 'begin_of_quad', 'end_of_quad',
        'begin_of_ref', 'end_of_ref', 'begin_of_box', 'end_of_box', 'image', 'video'))
AUDIO_MARKER = '<|audio|>'
AUDIO_TAIL = ('<|mask_token|>', '<|end_of_audio_new|>', '<|end_of_audio_span_last|>')

MOST_IDS = 2**24  # far above every tokenizer and codec; parameters of more ids fill any memory

_CODES = r'(?:<\|audio_(?:0|[1-9][0-9]*)\|>)+'
_ADDED = re.compile('(' + '|'.join([_CODES, *(re.escape(name) for name in (
    *QWEN_SPECIALS, *CONTROLS, AUDIO_MARKER, *AUDIO_TAIL))]) + ')')


class VocabularyFile(schema.Kind):
  """A Vocabulary in JSON files."""
  text: str
  text_ranks: Annotated[int, schema.Range(1, MOST_IDS)]
  codec: str
  codebook_size: Annotated[int, schema.Range(1, MOST_IDS)]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The ids of one text tokenizer and one codec.

  Attributes:
    text: identity of the text tokenizer, e.g. 'bytes' or 'qwen2.5'.
    text_ranks: number of ordinary text ids.
    codec: identity of the codec, e.g. 'mel-1x2048x2-1f0c...'. A fitted codec's name has the
      hash of its codebook, since the same code is another sound in another codebook.
    codebook_size: number of audio codes.
  """
  text: str
  text_ranks: int
  codec: str
  codebook_size: int

  def __post_init__(self):
    if self.text_ranks < 1 or self.codebook_size < 1:
      raise UserError(
          f'A vocabulary needs at least one text id and one code, not {self.text_ranks} '
          f'and {self.codebook_size}.')
    if self.text_ranks + self.codebook_size > MOST_IDS:
      raise UserError(f'A vocabulary has at most {MOST_IDS:,} ids, not {self.text_ranks:,} for '
                      f'text and {self.codebook_size:,} for audio.')

  # -- text-class ids -------------------------------------------------------------
  @property
  def pad(self) -> int:
    return self.text_ranks  # <|endoftext|>

  def special(self, name: str) -> int:
    """Id of a Qwen2.5 special or a control token, by its full name '<|...|>'."""
    return self.text_ranks + (QWEN_SPECIALS + CONTROLS).index(name)

  @property
  def im_start(self) -> int:
    return self.special('<|im_start|>')

  @property
  def im_end(self) -> int:
    return self.special('<|im_end|>')

  @property
  def begin_of_audio(self) -> int:
    return self.special('<|begin_of_audio|>')

  @property
  def end_of_audio(self) -> int:
    """<|end_of_audio|>: ends a *user's* audio; it is text-class, so it is outside the span."""
    return self.special('<|end_of_audio|>')

  @property
  def begin_of_quad(self) -> int:
    return self.special('<|begin_of_quad|>')

  # -- audio-class ids ------------------------------------------------------------
  @property
  def audio_threshold(self) -> int:
    return self.text_ranks + len(QWEN_SPECIALS) + len(CONTROLS)

  @property
  def code_start(self) -> int:
    return self.audio_threshold + 1

  @property
  def mask(self) -> int:
    return self.code_start + self.codebook_size

  @property
  def end_of_chunk(self) -> int:
    """<|end_of_audio_new|>: ends every span of an answer but the last."""
    return self.mask + 1

  @property
  def end_of_last(self) -> int:
    """<|end_of_audio_span_last|>: ends the last (quad) span."""
    return self.mask + 2

  @property
  def size(self) -> int:
    return self.mask + 3

  def is_audio(self, ids: Any) -> Any:
    """Whether ids are audio-class: int, numpy array or traced array."""
    return ids >= self.audio_threshold

  def is_code(self, ids: Any) -> Any:
    return (ids >= self.code_start) & (ids < self.mask)

  def is_end(self, ids: Any) -> Any:
    return (ids == self.end_of_chunk) | (ids == self.end_of_last)

  def is_begin(self, ids: Any) -> Any:
    """Whether ids are begin tokens; a model that emits one opens an audio span."""
    return (ids == self.begin_of_audio) | (ids == self.begin_of_quad)

  def encode_codes(self, codes: Any) -> np.ndarray:
    """Codec codes [n] -> ids int32 [n]; a code outside the codebook raises a UserError."""
    codes = np.asarray(codes, np.int64)
    bad = codes[(codes < 0) | (codes >= self.codebook_size)]
    if bad.size:
      raise UserError(f'Audio code {int(bad[0])} is outside the codebook of {self.codec} '
                      f'(0..{self.codebook_size - 1}).')
    return (codes + self.code_start).astype(np.int32)

  def decode_codes(self, ids: Any) -> np.ndarray:
    """ids [n] -> int32 [m], the codes among them, in order; other ids are dropped."""
    ids = np.asarray(ids, np.int64)
    return (ids[self.is_code(ids)] - self.code_start).astype(np.int32)

  def id_of(self, name: str) -> int:
    """The id of an added token other than a code, by its full name; ValueError if there is none."""
    if name in AUDIO_TAIL:
      return self.mask + AUDIO_TAIL.index(name)
    if name == AUDIO_MARKER:
      return self.audio_threshold
    return self.special(name)

  def split(self, text: str) -> Iterator[str | list[int]]:
    """A string as stretches of text and ids of added tokens, as Hugging Face's tokenizer splits it.

    Raises:
      UserError: a code outside the codebook.
    """
    for number, piece in enumerate(_ADDED.split(text)):
      if number % 2 and piece.startswith('<|audio_'):
        codes = piece[8:-2].split('|><|audio_')
        yield self.encode_codes([int(code[:12]) for code in codes]).tolist()
      elif number % 2:
        yield [self.id_of(piece)]
      elif piece:
        yield piece

  def name(self, token: int) -> str | None:
    """The string of an added token; None for an ordinary text id."""
    if not 0 <= token < self.size:
      raise UserError(f'Token id {token} is outside the vocabulary (0..{self.size - 1}).')
    if token < self.text_ranks:
      return None
    if token < self.audio_threshold:
      return (QWEN_SPECIALS + CONTROLS)[token - self.text_ranks]
    if token == self.audio_threshold:
      return AUDIO_MARKER
    if token < self.mask:
      return f'<|audio_{token - self.code_start}|>'
    return AUDIO_TAIL[token - self.mask]

  # -- identity -------------------------------------------------------------------
  @property
  def fingerprint(self) -> str:
    """12 hex digits; equal for data, checkpoints and exports that fit together."""
    text = json.dumps(dataclasses.asdict(self), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> 'Vocabulary':
    """The vocabulary of a VocabularyFile, which may have further keys."""
    return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def qwen_glm4() -> Vocabulary:
  """TtT's published vocabulary: Qwen2.5 text and GLM-4-Voice codes, 168,072 ids."""
  return Vocabulary('qwen2.5', QWEN_TEXT_RANKS, 'glm-4-voice', GLM4_CODEBOOK_SIZE)
