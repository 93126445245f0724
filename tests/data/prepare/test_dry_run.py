"""`prepare --dry-run`: what it says of sources is about what `prepare` then makes of them."""

import dataclasses
import json

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from tests.data.prepare import test_phases, tone
from tests.data.prepare.test_phases import config
from ttt_jax.audio import io
from ttt_jax.cli import main
from ttt_jax.config import CodecConfig, Source
from ttt_jax.data.prepare import dry_run, prepare
from ttt_jax.data.records import readers
from ttt_jax.errors import UserError

corpus = test_phases.corpus


def plan_of(setup, folder):
  """The plan; its table has at most 80 columns, and nothing is written."""
  before = sorted(folder.rglob('*'))
  found = dry_run.plan(setup, folder)
  assert sorted(folder.rglob('*')) == before
  assert max(map(len, dry_run.table(dataclasses.replace(
      found, target='data', notes=[], codec='')).splitlines())) <= 80
  return found


def tokens_of(found):
  out = {}
  for row in found.rows:
    out[row.split] = out.get(row.split, 0) + row.tokens
  return out


def test_the_plan_is_about_what_prepare_makes(corpus, tmp_path):
  setup = config(corpus)
  found = plan_of(setup, tmp_path)
  assert [(row.records, row.exact) for row in found.rows] == [
      (300, True), (150, True), (60, True), (10, True)]
  manifest = prepare.prepare(setup, tmp_path)
  for split, tokens in tokens_of(found).items():
    entry = manifest['splits'][split]['tokens']
    assert tokens == pytest.approx(entry['text'] + entry['audio'], rel=0.15), split
  size = sum(path.stat().st_size for path in (tmp_path / 'data').glob('*.arrayrecord'))
  assert sum(tokens_of(found).values()) * found.token_bytes == pytest.approx(size, rel=0.5)
  assert [(name, count) for name, count, *_ in found.phases] == [
      ('reading sources', 4), ('rendering', 4), ('packing', 3)]
  again = ' '.join(dry_run.table(plan_of(setup, tmp_path)).split())
  assert "data would be replaced: " in again and "rows of 'heldout'" in again
  assert 'saved in ' in again and 'nothing was written' in again


def test_stored_results_are_counted(corpus, tmp_path):
  setup = config(corpus, sources=(Source(str(corpus / 'a.jsonl')), Source('bad.jsonl')))
  (tmp_path / 'bad.jsonl').write_text((corpus / 'b.jsonl').read_text() + '{"mess\n')
  (tmp_path / 'codec').symlink_to(corpus / 'codec')
  with pytest.raises(UserError, match='bad.jsonl:151'):
    prepare.prepare(setup, tmp_path)
  found = plan_of(setup, tmp_path)  # the bad line is behind the sample
  assert found.left == 1 and found.phases[0][:3] == ('reading sources', 2, 1)


@pytest.mark.parametrize('suffix', ['.jsonl', '.jsonl.gz', '.json', '.parquet'])
def test_records_are_estimated_from_the_first(corpus, tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(dry_run, 'SECONDS', 0)
  monkeypatch.setattr(dry_run, 'RECORDS', 40)
  monkeypatch.setattr(readers, 'CUT', 16_000)
  lines = (corpus / 'a.jsonl').read_bytes()
  path = tmp_path / f'x{suffix}'
  values = [json.loads(line) for line in lines.splitlines()]
  if suffix == '.parquet':
    parquet.write_table(pyarrow.Table.from_pylist(values), path)
  elif suffix == '.json':
    path.write_text(json.dumps(values))
  else:
    import gzip
    path.write_bytes(gzip.compress(lines) if suffix.endswith('.gz') else lines)
  (tmp_path / 'codec').symlink_to(corpus / 'codec')
  row, = plan_of(config(tmp_path, sources=(Source(path.name),)), tmp_path).rows
  assert row.records == pytest.approx(300, rel=0.25) and row.exact == (suffix == '.parquet')


def test_recordings_are_read_and_encoded_once(tmp_path):
  lines = []
  for n in range(4):
    io.write_wav(tmp_path / f'{n}.wav', tone.tone(400 + 90 * n, 1.5), tone.RATE)
    lines.append(json.dumps({'audio': f'{n}.wav', 'text': f'tone {n}'}))
  (tmp_path / 'x.jsonl').write_text('\n'.join(lines))
  sources = (Source('x.jsonl', task='asr', prompt=''), Source('x.jsonl', task='tts', prompt=''))
  setup = config(tmp_path, sources=sources)
  found = plan_of(setup, tmp_path)
  assert [row.seconds for row in found.rows] == [pytest.approx(6), 0]
  name, count, _, seconds = found.phases[1]
  assert (name, count) == ('encoding speech', 1) and seconds > 0
  assert 'and fitting the codec' in dry_run.table(found)
  small = dataclasses.replace(setup, codec=CodecConfig(codes=4))
  manifest = prepare.prepare(small, tmp_path)
  entry = manifest['splits']['train']['tokens']
  assert tokens_of(plan_of(small, tmp_path))['train'] == pytest.approx(
      entry['text'] + entry['audio'], rel=0.05)
  (tmp_path / '2.wav').unlink()
  with pytest.raises(UserError, match='x.jsonl:3: recording .*2.wav does not exist'):
    plan_of(setup, tmp_path)
  lenient = dataclasses.replace(setup, data=dataclasses.replace(setup.data, strict=False))
  assert plan_of(lenient, tmp_path).rows[0].records == 4


def test_what_prepare_refuses_is_refused(corpus, tmp_path):
  setup = config(corpus, sources=(Source(str(corpus / 'a.jsonl')), Source('bad.jsonl')))
  (tmp_path / 'bad.jsonl').write_text('{"mess\n')
  with pytest.raises(UserError, match='bad.jsonl:1: broken JSON'):
    plan_of(setup, tmp_path)
  (tmp_path / 'bad.jsonl').write_text('')
  with pytest.raises(UserError, match='bad.jsonl is empty'):
    plan_of(setup, tmp_path)
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'mine').touch()
  with pytest.raises(UserError, match='not a prepared set that ttt-jax made: mine'):
    plan_of(config(corpus), tmp_path)
  lenient = config(tmp_path, path='new', sources=(Source('bad.jsonl'),), strict=False)
  (tmp_path / 'bad.jsonl').write_text('{"mess\n')
  with pytest.raises(UserError, match='no record of the sample can be used; 1 records of the'):
    plan_of(lenient, tmp_path)


def test_the_command_takes_no_worker(tmp_path, capsys):
  assert main.main(['prepare', '--config', 'configs/demo.py', '--workdir', str(tmp_path / 'w'),
                    '--dry-run', '--worker', '0/2']) == 2
  assert '--worker has no effect' in capsys.readouterr().err
  assert not np.any(list(tmp_path.iterdir()))
