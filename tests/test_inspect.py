"""`ttt-jax inspect` shows what training reads, and nothing else."""

import re

import numpy as np
import pytest
import soundfile

from tests import runs
from ttt_jax import cli, config as config_lib, inspect_data
from ttt_jax.audio import codec as codecs
from ttt_jax.data import prepare


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  prepare.prepare(runs.config(), folder)
  config_lib.save(runs.config(), folder)
  return folder


def plain(text):
  """Without rich's markup."""
  import io

  import rich.console
  out = io.StringIO()
  rich.console.Console(file=out, soft_wrap=True).print(text)
  return out.getvalue()


def test_a_document_in_words_spans_picture_and_sound(workdir, tmp_path, capsys):
  assert cli.main(['inspect', '--workdir', str(workdir), '--out', str(tmp_path)]) == 0
  said = capsys.readouterr().out
  number = int(re.match(r'document (\d+) of split train: (\d+) tokens', said).group(1))
  assert '<|im_start|>assistant' in said and '<|begin_of_quad|>[' in said
  assert '<|end_of_audio_span_last|>' in said
  held = inspect_data.Set(runs.config(), workdir)
  _, document = held.document('train', number)
  codes = held.vocab.decode_codes(document.token[document.supervised > 0])
  sound, rate = soundfile.read(tmp_path / f'{number}-said.wav', dtype='float32')
  assert rate == held.codec.sample_rate
  np.testing.assert_allclose(sound, held.codec.decode(codes), atol=1e-3)
  assert (tmp_path / f'{number}-mask.png').read_bytes().startswith(b'\x89PNG')
  assert f'wrote {tmp_path / f"{number}-mask.png"}' in said


def test_every_token_is_listed_with_what_it_reads(workdir):
  held = inspect_data.Set(runs.config(), workdir)
  number, document = held.document('train', None)
  lines = plain(inspect_data.show(held, 'train', number, None, ids=True)).split('position')[1]
  rows = [line.split() for line in lines.splitlines()[1:] if line.strip()]
  assert [int(row[1]) for row in rows] == document.token.tolist()
  ends = np.array([int(re.search(r'\d+\.\.(\d+)', ' '.join(row)).group(1)) for row in rows])
  spoken = document.span > 0
  assert (ends[~spoken] == np.flatnonzero(~spoken)).all()
  for span in np.unique(document.span[spoken]):
    where = np.flatnonzero(document.span == span)
    assert (ends[where] == where[-1]).all()
  learned = [row[-1] if row[-1] != 'token' else 'next token' for row in rows]
  expected = np.where(spoken, 'diffusion', 'next token')
  assert [word for word, yes in zip(learned, document.supervised) if yes] == (
      expected[document.supervised > 0].tolist())


def test_codes_that_cannot_be_heard_here_are_shown(workdir, tmp_path):
  held = inspect_data.Set(runs.config(), workdir)
  held.codec = codecs.create(config_lib.CodecConfig(name='glm4_voice'))  # no decoder is given
  said = plain(inspect_data.show(held, 'train', None, tmp_path))
  assert re.search(r'\[\d+ codes: \d', said)
  assert [path.suffix for path in tmp_path.iterdir()] == ['.png']


def test_the_page_counts_every_document(workdir, tmp_path, capsys):
  assert cli.main(['inspect', '--workdir', str(workdir), '--set', '--out', str(tmp_path)]) == 0
  page = (tmp_path / 'set.html').read_text()
  held = inspect_data.Set(runs.config(), workdir)
  for name, split in held.manifest['splits'].items():
    found = inspect_data.measure(held, name)
    assert len(found['length']) == split['documents']
    assert found['audio'].sum() == split['tokens']['audio'] == found['span'].sum()
    assert found['length'].sum() == split['tokens']['audio'] + split['tokens']['text']
    assert found['supervised'].sum() == split['tokens']['supervised']
    assert f'{split["documents"]:,} documents' in page
  assert page.count('data:image/png') == len(held.manifest['splits'])


@pytest.mark.parametrize('words, sentence', [
    (['--split', 'x'], "--split is 'x'; .* has heldout, train"),
    (['--document', '99999'], "no document of that number")])
def test_mistakes(workdir, capsys, words, sentence):
  assert cli.main(['inspect', '--workdir', str(workdir), *words]) == 2
  assert re.search(sentence, capsys.readouterr().err)
