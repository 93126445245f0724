"""Files are replaced at once or not at all, appended to by several, and errors are sentences."""

import errno
import os
import pathlib
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ttt_jax.audio import io
from ttt_jax.cli import main
from ttt_jax.errors import UserError
from ttt_jax.runs.report import plots
from ttt_jax.storage import files

ROOT = pathlib.Path(__file__).parents[2]


def test_a_file_is_replaced_as_a_whole_and_behind_its_link(tmp_path):
  real = tmp_path / 'disk' / 'real.txt'
  real.parent.mkdir()
  (tmp_path / 'link.txt').symlink_to(real)
  files.write_text(tmp_path / 'link.txt', 'one')
  assert (tmp_path / 'link.txt').is_symlink() and real.read_text() == 'one'
  with pytest.raises(ZeroDivisionError), files.replacing(real) as file:
    file.write('half')
    raise ZeroDivisionError
  assert real.read_text() == 'one' and list(real.parent.iterdir()) == [real]
  real.chmod(0o640)
  long = tmp_path / ('n' * 255)
  files.write_text(long, 'x')
  assert long.read_text() == 'x'


def test_many_write_one_file_at_once(tmp_path):
  def write(text):
    for _ in range(20):
      files.write_text(tmp_path / 'a', text * 10_000)
  threads = [threading.Thread(target=write, args=(text,)) for text in 'abcd']
  for thread in threads:
    thread.start()
  while any(thread.is_alive() for thread in threads):
    if (tmp_path / 'a').exists():
      text = (tmp_path / 'a').read_text()
      assert len(text) == 10_000 and len(set(text)) == 1
  assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_devices_and_pipes_are_written_and_not_replaced(tmp_path):
  with pytest.raises(UserError, match='/dev/full could not be written: the disk is full; free'):
    files.write_text('/dev/full', 'x')
  files.write_text('/dev/null', 'x')
  assert not pathlib.Path('/dev/null').is_file()
  (tmp_path / 'null').symlink_to('/dev/null')
  files.write_text(tmp_path / 'null', 'x')
  files.require_writable_file('/dev/null')
  assert (tmp_path / 'null').is_symlink()


def test_sounds_pictures_and_tables_on_a_full_disk_are_the_same_sentence(tmp_path):
  (tmp_path / 'full').symlink_to('/dev/full')
  def picture(path):
    with plots.figure_file(path, 1, 1):
      pass
  def arrays(path):
    with files.replacing(path, 'wb') as file:
      np.savez_compressed(file, a=np.arange(10_000))
  def sound(path):
    io.write_wav(path, np.zeros(100, np.float32), 16_000)
  for write in (sound, picture, arrays):
    with pytest.raises(UserError, match='full could not be written: the disk is full; free some'):
      write(tmp_path / 'full')


@pytest.mark.parametrize('code, words', [
    (errno.ENOSPC, 'the disk is full; free some space'),
    (errno.EDQUOT, 'the quota of the disk is used up; free some space'),
    (errno.EACCES, 'Permission denied; change the permissions, or choose another folder'),
    (errno.EROFS, 'Read-only file system; choose another folder'),
    (errno.EIO, 'Input/output error; check the disk')])
def test_every_error_of_the_system_is_the_same_kind_of_sentence(code, words):
  wrapped = RuntimeError('a library says')
  wrapped.__cause__ = OSError(code, os.strerror(code))
  for error in (wrapped.__cause__, wrapped, ValueError(f"writing [os_error_code='{code}']")):
    with pytest.raises(UserError) as told, files.writing('x/y', 'z is intact'):
      raise error
    why, remedy = words.split('; ')
    assert str(told.value) == (f'x/y could not be written: {why}; z is intact; {remedy}, then run '
                               'the same command again.')
  with pytest.raises(KeyError), files.writing('x'):
    raise KeyError('a bug')


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'lost').symlink_to(tmp_path / 'unmounted' / 'folder')
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  for path, words in (
      ('file', 'file could not be written: Not a directory'),
      ('file/below', 'below could not be written: Not a directory'),
      ('n' * 256, 'File name too long; choose a shorter name'),
      ('lost', 'is a link to .*unmounted/folder, whose disk or folder does not exist'),
      ('loop', 'could not be written: ')):
    with pytest.raises(UserError, match=words):
      files.require_writable(tmp_path / path)
  with pytest.raises(UserError, match='is a folder; name a file'):
    files.require_writable_file(tmp_path)
  files.require_writable(tmp_path / 'new' / 'folder')
  assert not list((tmp_path / 'new' / 'folder').iterdir())


def test_a_limit_on_the_file_size_keeps_the_old_file(tmp_path):
  files.write_text(tmp_path / 'a', 'old')
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
  try:
    with pytest.raises(UserError, match=r'beyond its limit; raise the limit \(ulimit -f\)'):
      files.write_text(tmp_path / 'a', 'x' * 200)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert (tmp_path / 'a').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
  gone = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'],
                        capture_output=True, text=True, check=True).stdout.strip()
  old, young = (tmp_path / f'.a.{gone}-{digits}.partial' for digits in ('0' * 8, '1' * 8))
  alive = tmp_path / f'.a.{os.getpid()}-00000000.partial'
  mine = [tmp_path / name for name in ('a.partial', '.a.partial', f'.{gone}.partial')]
  for path in (old, young, alive, *mine):
    path.write_text('x')
    if path is not young:
      os.utime(path, (0, time.time() - 3600))
  files.remove_partials(tmp_path)
  assert set(tmp_path.iterdir()) == {young, alive, *mine}
  files.remove_partials(tmp_path / 'nothing')


@pytest.mark.parametrize('words', [
    ['evaluate', '--workdir', 'run', '--out', 'file/x'],
    ['generate', '--workdir', 'run', '--task', 'tts', '--text', '1', '--out', 'file/x'],
    ['score', '--workdir', 'run', '--out', 'file/x.json'],
    ['export-hf', '--workdir', 'run', '--out', 'file/x'],
    ['prepare', '--config', 'run/config.json', '--workdir', 'file/x'],
    ['supervise', '--workdir', 'file/x', '--', 'true'],
    ['sweep', '--workdir', 'file/x', '--config', 'run/config.json', '--sweep', 'sweep.py']])
def test_commands_find_out_before_they_load_anything(tmp_path, monkeypatch, capsys, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{}')
  (tmp_path / 'file').write_text('mine')
  (tmp_path / 'sweep.py').write_text('def get_sweep():\n  return [{"seed": 1}]\n')
  assert main.main(words) == 2
  told = capsys.readouterr().err.strip().splitlines()
  assert len(told) == 1 and told[0].startswith('ttt-jax: error: '), told
  assert 'could not be written: Not a directory; choose another path' in told[0]
  assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('name, words', [
    ('evaluation.json', ['evaluate']), ('scores.json', ['score']), ('report.html', ['report']),
    ('sweep.json', ['sweep', '--sweep', 'sweep.py']),
    ('training.json', ['export-hf', '--out', '.', '--overwrite'])])
def test_a_file_of_a_user_among_results_is_kept(tmp_path, monkeypatch, capsys, name, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'config.json').write_text('{"model": {}, "data": {}, "train": {}}')
  (tmp_path / 'sweep.py').write_text('def get_sweep():\n  return [{"seed": 1}]\n')
  (tmp_path / name).write_text('mine')
  assert main.main([*words, '--workdir', '.']) == 2
  assert 'ttt-jax made' in (told := capsys.readouterr().err) or 'was not written by' in told
  assert (tmp_path / name).read_text() == 'mine'
