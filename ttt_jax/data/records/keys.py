"""The keys of records, turns and parts: which change the meaning of a row, and which do not.

A key is one of

  used      read by records.py, sounds.py or recordings.py
  REJECTED  changes the meaning, but cannot be used: an error, unless its value is empty
  METADATA  does not change the meaning: passed over
  unknown   listed once per source in the table of `ttt-jax prepare`, and in the manifest
"""

from collections.abc import Collection
from typing import Any

from ttt_jax.errors import UserError

_TOOLS = ('tools are not rendered; write them and their results as text, or remove the key')
_IMAGES = ('only text and sound are read; remove the key, and the records that need it')
_PAIRS = ('preferences are not trained; keep the better answer and remove the key')
_THOUGHT = ('it has no place in an answer; write it into the text of the answer, or remove the key')
_CODES = ('its codec is unknown; call it "codes" if the codec of the set made it, or remove it')
_RANGES = ('an answer has a loss as a whole; split the turn, or remove the key')
_PER_TURN = ('give each turn its own, as "weight": 0 or 1, and remove the key')
_SAMPLES = ('a place in samples is not read; give offset and duration in seconds')

_SOMEWHERE = {
    **dict.fromkeys(('tools', 'functions', 'tool_calls', 'function_call', 'tool_call_id',
                     'tool_choice'), _TOOLS),
    **dict.fromkeys(('images', 'image', 'image_url', 'image_path', 'videos', 'video', 'video_url',
                     'video_path'), _IMAGES),
    **dict.fromkeys(('reasoning_content', 'reasoning', 'thinking', 'thought', 'thoughts'),
                    _THOUGHT),
    **dict.fromkeys(('audio_codes', 'audio_tokens', 'speech_codes', 'speech_tokens',
                     'speech_token', 'answer_snac', 'answer_cosyvoice_speech_token', 'unit',
                     'units', 'tgt_unit', 'tgt_units', 'semantic_tokens'), _CODES),
    **dict.fromkeys(('frame_offset', 'offset_samples', 'start_sample', 'end_sample',
                     'start_frame', 'end_frame'), _SAMPLES)}

# By level: key -> why it cannot be used, as the end of a sentence.
REJECTED: dict[str, dict[str, str]] = {
    'record': {
        **{key: why for key, why in _SOMEWHERE.items()
           if key not in ('reasoning', 'thinking', 'thought', 'thoughts')},
        **dict.fromkeys(('chosen', 'rejected', 'rejected_response', 'rejected_messages',
                         'rejected_conversations', 'kto_tag', 'preference'), _PAIRS),
        **dict.fromkeys(('weights', 'loss_weights', 'loss_masks', 'train_mask', 'turn_weights'),
                        _PER_TURN)},
    'turn': {**_SOMEWHERE, 'rejected': _PAIRS, 'rejected_content': _PAIRS,
             'train_detail': _RANGES},
    'part': {**_SOMEWHERE, 'train_detail': _RANGES},
}

METADATA = frozenset((
    # names of the example and where it comes from
    '_id', 'id', 'idx', 'index', 'uid', 'uuid', 'key', 'utt', 'utt_id', 'utterance_id', 'row_id',
    'prompt_id', 'conversation_id', 'conv_id', 'dialog_id', 'dialogue_id', 'session_id',
    'message_id', 'parent_id', 'sample_id', 'segment_id', 'recording_id', 'example_id',
    'question_id', 'audio_id', 'sentence_id', 'chapter_id', 'book_id', 'youtube_id',
    'audiocap_id', 'client_id', '__index_level_0__', '__key__', '__url__', 'source', 'sources',
    'source_id', 'origin', 'original_file', 'dataset', 'dataset_name', 'datasets', 'corpus',
    'split', 'split_name', 'subset', 'set', 'fold', 'shard', 'url', 'source_url', 'link', 'dump',
    'title', 'author', 'date', 'time', 'timestamp', 'created', 'created_at', 'update_time',
    'version', 'license', 'license_id', 'copyright', 'generator', 'model_name', 'created_by',
    # kinds and languages
    'category', 'categories', 'topic', 'topics', 'domain', 'sentence_domain', 'genre', 'tags',
    'tag', 'keywords', 'lang', 'language', 'languages', 'lang_id', 'language_score', 'locale',
    'task_type', 'data_type', 'task_name', 'subtask',
    # speakers
    'speaker', 'speakers', 'speaker_id', 'speaker_name', 'spk', 'spk_id', 'reader', 'reader_id',
    'gender', 'sex', 'age', 'accent', 'accents', 'dialect', 'nationality', 'emotion', 'name',
    'variant', 'segment',
    # measures
    'quality', 'score', 'scores', 'rating', 'up_votes', 'down_votes', 'snr', 'wer', 'cer', 'pesq',
    'mos', 'dnsmos', 'int_score', 'num_turns', 'turn', 'round', 'num_tokens', 'n_tokens',
    'token_count', 'tokens_count', 'num_samples', 'num_frames', 'n_frames', 'num_chars', 'length',
    'size', 'md5', 'sha1', 'sha256', 'hash', 'durations',
    # forms of the sound's file
    'sample_rate', 'sampling_rate', 'samplerate', 'sr', 'bit_depth', 'bits', 'format', 'encoding',
    'codec', 'num_channels', 'n_channels', 'mime_type',
    # notes
    'meta', 'metadata', 'meta_data', 'info', 'extra', 'extras', 'comment', 'comments', 'note',
    'notes', 'description', 'text_content', 'cache_control', 'annotations', 'logprobs', 'refusal',
))

# Of METADATA, those that are times of a stretch if they hold several numbers.
_TIMES = ('time', 'timestamp', 'segment')
MOST = 50  # names of unknown keys that are kept; more mean that keys are data
OTHERS = '(other keys)'


def empty(value: Any) -> bool:
  """Whether a key says nothing: null, false, '', [], {}, or a JSON text of such."""
  return value is None or value is False or (
      isinstance(value, (str, list, dict)) and not value) or (
          isinstance(value, str) and value.strip() in ('', '[]', '{}', 'null', 'None'))


def check(value: dict[str, Any], level: str, used: Collection[str], at: str) -> list[str]:
  """Finds what an object says beyond the keys that were used.

  Args:
    value: a record, a turn or a part.
    level: 'record', 'turn' or 'part'.
    used: the keys that were read.
    at: its place, for the error message.

  Returns:
    The unknown keys; those of turns and parts as 'turn.key' and 'part.key'.

  Raises:
    UserError: a key that changes the meaning and cannot be used.
  """
  rejected, out = REJECTED[level], []
  for key, found in value.items():
    if key in used or found is None or found in ('', [], {}) or (
        key in METADATA and not (key in _TIMES and isinstance(found, (list, dict)))):
      continue
    why = rejected.get(key)
    if why is None:
      out.append(str(key)[:60] if level == 'record' else f'{level}.{str(key)[:60]}')
    elif not empty(found):
      raise UserError(f'{at} has the key {key!r}: {why}.')
  return out
