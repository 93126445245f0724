"""Random and damaged input gives a UserError of one sentence or correct rows, never a crash."""

import gzip
import io as io_lib
import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ttt_jax.audio import io
from ttt_jax.config import VocabConfig
from ttt_jax.data import interleave
from ttt_jax.data.records import readers, records, tasks
from ttt_jax.errors import UserError
from ttt_jax.tokens.tokenizer import create
from ttt_jax.tokens.vocab import CONTROLS, QWEN_SPECIALS, Vocabulary

TEXT = create(VocabConfig())
V = Vocabulary('bytes', 256, 'test', 50)
RENDERER = interleave.Renderer(V, TEXT)
MARKS = (*records.BEGINS, *records.ENDS, '<|audio_0|>', '<|audio_49|>', '<|audio_50|>',
         '<|audio_-1|>', '<|audio_99999999999|>', '<|audio|>', '<|mask_token|>', '<|im_start|>',
         '<|im_end|>', '<|endoftext|>', '<audio>', '<audio>a.wav</audio>', '<|AUDIO|>', '<|',
         '|>', '', '\ud800', '音', '\x00', '\n')
KEYS = ('messages', 'conversations', 'prompt', 'response', 'text', 'id', 'task', 'type', 'role',
        'content', 'from', 'value', 'audio', 'codes', 'audios', 'speech', 'system', 'history',
        'weight', 'loss', 'instruction', 'input', 'output', 'question', 'answer', 'offset', 'end',
        'duration', 'channel', 'images', 'tools', 'path', 'answer_audio')
WORDS = ('user', 'assistant', 'system', 'human', 'gpt', 'tool', 'IT', 'PT', 'asr', 'a.wav')

texts = st.lists(st.sampled_from(MARKS) | st.text(max_size=8), max_size=8).map(''.join)
scalars = (st.none() | st.booleans() | st.integers(-2, 60) | st.floats(allow_nan=False) | texts
           | st.sampled_from(WORDS))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    st.sampled_from(KEYS), inner, max_size=4), max_leaves=12)
codes = st.lists(st.integers(-1, 51) | st.just(3.5) | st.just('3'), max_size=5)
parts = st.fixed_dictionaries({'type': st.sampled_from(['text', 'audio', 'image'])}, optional={
    'text': texts | values, 'codes': codes, 'audio': st.just('a.wav') | values})
contents = texts | st.lists(parts, max_size=3) | values
sound = st.sampled_from(['a.wav', ['a.wav', 'b.wav'], {'path': 'a.wav', 'offset': 1}, [], None])
turns = st.fixed_dictionaries(
    {'role': st.sampled_from(['user', 'assistant', 'system']) | values, 'content': contents},
    optional={'audio': sound, 'weight': scalars, 'speech': values, 'offset': scalars,
              'type': st.sampled_from(['audio', 'text'])})
objects = (
    st.fixed_dictionaries({'messages': st.lists(turns | values, max_size=4)}, optional={
        'id': values, 'task': st.sampled_from(['asr', 'x']) | values, 'type': values,
        'audios': sound, 'system': contents, 'history': values | st.lists(
            st.lists(texts, min_size=2, max_size=2), max_size=2), 'duration': scalars})
    | st.fixed_dictionaries({'conversations': st.lists(st.fixed_dictionaries(
        {'from': st.sampled_from(['human', 'gpt', 'system']), 'value': contents}), max_size=4)})
    | st.fixed_dictionaries({'prompt': contents, 'response': contents}, optional={
        'audio': sound, 'answer_audio': sound, 'input': texts, 'start': scalars, 'end': scalars})
    | st.fixed_dictionaries({'text': texts | values})
    | st.dictionaries(st.sampled_from(KEYS), values, max_size=5))


def check(record, example):
  """What every row must be, whatever the record was."""
  ids, audio = example.token, V.is_audio(example.token)
  assert ids.min() >= 0 and ids.max() < V.size
  assert not np.isin(ids, [V.mask, V.audio_threshold]).any(), 'a marker or a mask in a record'
  # Control tokens come from us alone: text that spells one stays text.
  document = record.turns[0].role == 'document'
  starts = 0 if document else sum(bool(turn.parts) for turn in record.turns)
  assert np.count_nonzero(ids == V.im_start) == starts
  assert np.count_nonzero(ids == V.im_end) == starts
  used = {V.special(name) for name in QWEN_SPECIALS + CONTROLS} - {
      V.im_start, V.im_end, V.begin_of_audio, V.begin_of_quad, V.end_of_audio}
  assert not np.isin(ids, sorted(used)).any()
  # Every span is opened, and closed; an answer's by an end token, a user's by its control.
  edges = np.flatnonzero(np.diff(np.concatenate([[0], audio, [0]])))
  for start, stop in edges.reshape(-1, 2):
    # A document may be a piece of a longer one: it begins or ends inside a span.
    assert ids[start - 1] in (V.begin_of_audio, V.begin_of_quad) or (document and not start)
    inside = V.is_end(ids[start:stop])
    assert not inside[:-1].any()
    assert inside[-1] or (document and stop == len(ids)) or ids[stop] == V.end_of_audio
  assert not example.supervised[:1].any() or record.type == 'PT'


@hypothesis.settings(max_examples=1500)
@hypothesis.given(objects)
def test_a_record_is_rejected_in_a_sentence_or_rendered_correctly(value):
  value = json.loads(json.dumps(value))
  try:
    record = records.parse(value, 'a.jsonl:7')
    assert all(turn.parts or turn.role == 'system' for turn in record.turns)
    record = record.map_audio(lambda part: part if part.codes is not None else records.Part(
        'audio', part.text, np.array([1, 2], np.int32), part.source))
    example = RENDERER.render(record)
  except UserError as error:
    assert str(error).startswith('a.jsonl:7: ') and str(error).endswith('.'), error
    return
  check(record, example)
  text, _ = RENDERER.unrender(example.token)
  for turn in record.turns:
    for part in turn.parts:
      if part.kind == 'text':
        assert TEXT.decode(TEXT.encode(part.text)) in text
  again = RENDERER.render(records.parse(records.to_json(record), 'b:1'))
  np.testing.assert_array_equal(again.token, example.token)
  np.testing.assert_array_equal(again.supervised, example.supervised)


recordings = st.dictionaries(st.sampled_from(
    ('id', 'audio', 'codes', 'text', 'transcript', 'path', 'answer', 'caption', 'instruction',
     'answer_audio', 'answer_codes', 'question')), values | codes | texts)


@hypothesis.settings(max_examples=400)
@hypothesis.given(st.sampled_from(tasks.RECORDED), recordings,
                  st.none() | scalars | st.lists(st.fixed_dictionaries(
                      {'text': texts}, optional={'codes': codes, 'audio': scalars}), max_size=3))
def test_a_recording_is_rejected_in_a_sentence_or_used(task, value, pieces):
  value = json.loads(json.dumps({**value, **({} if pieces is None else {'pieces': pieces})}))
  try:
    recording = tasks.parse_recording(value, 'a.jsonl:7', task)
    assert all(part.codes is not None or part.source for part in recording.audio_parts())
    known = recording.map_audio(lambda part: part if part.codes is not None else records.Part(
        'audio', part.text, np.array([1, 2], np.int32), part.source))
    record = tasks.to_record(known, task, np.random.default_rng(0))
    example = RENDERER.render(record)
  except UserError as error:
    assert str(error).startswith('a.jsonl:7: ') and str(error).endswith('.'), error
    return
  assert recording.text.strip() or task not in ('asr', 'tts')
  assert (recording.audio is None) == (task in ('text_chat', 'pt'))
  check(record, example)


def packed(kind):
  """A valid file of 20 records, as bytes."""
  rows = [{'id': str(i), 'prompt': f'Frage {i}?', 'response': 'ä' * i + '<|audio_3|>'}
          for i in range(20)]
  data = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()
  if kind == '.json':
    return json.dumps(rows).encode()
  if kind == '.jsonl.gz':
    return gzip.compress(data, mtime=0)
  if kind == '.jsonl.zst':
    zstd = pytest.importorskip('zstandard')
    return zstd.ZstdCompressor(write_checksum=True).compress(data)
  if kind == '.parquet':
    pa = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    out = io_lib.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, write_page_checksum=True)
    return out.getvalue()
  if kind == '.csv':
    return ('id,text\n' + ''.join(f'{i},"a ""{i}"", b"\n' for i in range(20))).encode()
  return data


@pytest.mark.parametrize('kind', ['.jsonl', '.json', '.jsonl.gz', '.jsonl.zst', '.parquet', '.csv'])
def test_damaged_files_are_rejected_or_read(tmp_path, kind):
  data, rng = packed(kind), np.random.default_rng(0)
  whole = tmp_path / f'whole{kind}'
  whole.write_bytes(data)
  right = [row for _, row in readers.read(whole)]
  path = tmp_path / f'a{kind}'
  refused = 0
  for case in range(200):
    bad = bytearray(data)
    if case % 2:
      del bad[int(rng.integers(len(bad))):]
    for _ in range(int(rng.integers(1, 4)) if case % 4 < 3 and bad else 0):
      bad[int(rng.integers(len(bad)))] = int(rng.integers(256))
    path.write_bytes(bad)
    try:
      found = [row for _, row in readers.read(path)]
    except UserError as error:
      assert str(path) in str(error) and str(error).endswith('.'), error
      refused += 1
      continue
    assert all(isinstance(row, dict) for row in found)
    if kind in ('.jsonl.gz', '.jsonl.zst'):
      assert found == right, 'a checksum does not let a damaged record pass'
  assert refused > 50 or kind == '.csv'


@pytest.mark.parametrize('kind', ['WAV', 'FLAC', 'OGG', 'MP3'])
def test_damaged_recordings_are_rejected_or_finite(tmp_path, kind):
  import soundfile
  rng = np.random.default_rng(1)
  wave = np.sin(np.arange(6000) / 9).astype(np.float32) * 0.3
  path = tmp_path / f'a.{kind.lower()}'
  soundfile.write(path, np.stack([wave, wave / 2], 1), 16000, format=kind)
  data = path.read_bytes()
  heard, rate = io.read(path)
  assert rate == 16000 and abs(len(heard) - 6000) <= 2400  # MP3 pads with silence
  refused = 0
  for case in range(150):
    bad = bytearray(data)
    if case % 3 == 0:
      del bad[int(rng.integers(len(bad))):]
    for _ in range(int(rng.integers(1, 9)) if bad else 0):
      bad[int(rng.integers(min(len(bad), 200 if case % 2 else len(bad))))] = int(rng.integers(256))
    path.write_bytes(bad)
    try:
      found, rate = io.read(path)
    except UserError as error:
      assert str(path) in str(error) and str(error).endswith('.'), error
      refused += 1
      continue
    assert found.ndim == 1 and found.size and np.isfinite(found).all()
    assert io.LOWEST_RATE <= rate <= io.HIGHEST_RATE
  assert refused > 10
