"""What --workdir may be, on a disk and in a bucket."""

import pathlib

import pytest

from ttt_jax.cli import main
from ttt_jax.storage import remote

READERS = ('status', 'report', 'profile')


def refused(capsys, *words):
  """The sentence of a command that ends with code 2."""
  assert main.main(list(words)) == 2, words
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'Traceback' not in said, said
  return said


@pytest.mark.parametrize('verb', (*READERS, 'sweep --collect', 'train', 'evaluate', 'serve'))
def test_a_file_is_no_workdir(verb, tmp_path, capsys):
  (tmp_path / 'file').touch()
  assert 'is a file; name a folder' in refused(capsys, *verb.split(), '--workdir',
                                               str(tmp_path / 'file'))


@pytest.mark.parametrize('verb', (*READERS, 'sweep --collect'))
def test_who_reads_names_a_run(verb, tmp_path, capsys):
  words = (*verb.split(), '--workdir')
  (tmp_path / 'demo' / 'data').mkdir(parents=True)
  (tmp_path / 'demo' / 'config.json').touch()
  assert f"workdir {tmp_path}/dmo does not exist; perhaps {tmp_path}/demo is meant." in refused(
      capsys, *words, str(tmp_path / 'dmo'))
  assert f'there is no run in {tmp_path}/demo/data; name' in refused(
      capsys, *words, str(tmp_path / 'demo/data'))
  assert [path.name for path in (tmp_path / 'demo/data').iterdir()] == []  # no report, above all


@pytest.mark.parametrize('verb', (*READERS, 'train', 'generate --out x --text a --task tts'))
def test_checkpoints_are_no_workdir(verb, tmp_path, capsys):
  step = tmp_path / 'demo' / 'checkpoints' / '40'
  step.mkdir(parents=True)
  (step / 'seal.json').touch()
  for place in (step.parent, step):
    assert f'name the folder of the run: {tmp_path}/demo.' in refused(
        capsys, *verb.split(), '--workdir', str(place))


@pytest.mark.storage
def test_in_a_bucket(gs_bucket, capsys):
  remote.write_bytes(gs_bucket + '/demo/config.json', b'{}')
  remote.write_bytes(gs_bucket + '/demo/checkpoints/40/seal.json', b'{}')
  remote.write_bytes(gs_bucket + '/set/manifest.json', b'{}')
  for verb in ('status', 'report'):
    assert f'workdir {gs_bucket}/demoo does not exist; perhaps {gs_bucket}/demo is meant' in (
        refused(capsys, verb, '--workdir', gs_bucket + '/demoo'))
  for place in ('checkpoints', 'checkpoints/40'):
    assert f'name the folder of the run: {gs_bucket}/demo.' in refused(
        capsys, 'train', '--workdir', f'{gs_bucket}/demo/{place}')
  assert f'workdir {gs_bucket}/set is a prepared set; name another folder' in refused(
      capsys, 'train', '--workdir', gs_bucket + '/set', '--config', 'configs/demo.py')
  assert not any(path.is_file() for path in pathlib.Path(remote.cache_folder()).rglob('*')
                 if 'workdirs' in path.parts)
