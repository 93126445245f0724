"""Nothing is replaced or removed that this program did not make."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tools import clean
from ttt_jax.errors import UserError
from ttt_jax.storage import owned


def tree(folder):
  """{name: bytes} of everything in a folder."""
  return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
          for path in sorted(folder.rglob('*'))}


def build(target, text='new', **more):
  with owned.Building(target, 'a prepared set', 'config key data.path') as building:
    for name, content in {'a.txt': text, 'sub/b.txt': text, **more}.items():
      (building.folder / name).parent.mkdir(exist_ok=True)
      (building.folder / name).write_text(content)
    building.commit()


def test_what_was_made_is_replaced_and_nothing_is_left_beside_it(tmp_path):
  build(tmp_path / 'data', 'old', extra='old')
  build(tmp_path / 'data')
  assert set(tree(tmp_path / 'data')) == {'.ttt-jax.json', 'a.txt', 'sub', 'sub/b.txt'}
  assert [path.name for path in tmp_path.iterdir()] == ['data']
  assert (tmp_path / 'data').stat().st_mode & 0o777 == 0o777 & ~owned._umask()
  (tmp_path / 'data' / 'a.txt').unlink()  # a missing file is nobody's loss
  build(tmp_path / 'data')
  (tmp_path / 'empty').mkdir()
  build(tmp_path / 'empty')


def added(folder):
  (folder / 'thesis.txt').write_text('mine')


def added_below(folder):
  (folder / 'sub' / 'mine').mkdir()


def edited(folder):
  (folder / 'a.txt').write_text('nEw')


def linked(folder):
  (folder / 'a.txt').unlink()
  (folder / 'a.txt').symlink_to(__file__)


def link_to_folder(folder):
  (folder / 'away').symlink_to(pathlib.Path(__file__).parent)


def forged(folder):
  marker = json.loads((folder / owned.MARKER).read_text())
  marker['files']['thesis.txt'] = {'bytes': 4}
  (folder / owned.MARKER).write_text(json.dumps(marker))
  added(folder)


def no_marker(folder):
  (folder / owned.MARKER).unlink()


def damaged_marker(folder):
  (folder / owned.MARKER).write_text('{')


@pytest.mark.parametrize('change', [added, added_below, edited, linked, link_to_folder, forged,
                                    no_marker, damaged_marker])
def test_what_cannot_be_proven_stays(tmp_path, change):
  build(tmp_path / 'data')
  change(tmp_path / 'data')
  before = tree(tmp_path)
  with pytest.raises(UserError, match=r'data exists and is not a prepared set that ttt-jax made: '
                                      r'\S+ is not one of its files, or was changed'):
    build(tmp_path / 'data')
  assert tree(tmp_path) == before


def test_what_appears_during_the_work_stays(tmp_path):
  build(tmp_path / 'data')
  with pytest.raises(UserError, match='thesis.txt is not one'):
    with owned.Building(tmp_path / 'data', 'a prepared set', '--out') as building:
      (building.folder / 'a.txt').write_text('newer')
      added(tmp_path / 'data')
      building.commit()
  assert (tmp_path / 'data' / 'a.txt').read_text() == 'new'
  assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_a_link_stays_and_its_folder_is_replaced(tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  (tmp_path / 'data').symlink_to(disk / 'set')
  for text in ('old', 'new'):
    build(tmp_path / 'data', text)
  assert (tmp_path / 'data').is_symlink() and (disk / 'set' / 'a.txt').read_text() == 'new'
  assert [path.name for path in disk.iterdir()] == ['set']
  with pytest.raises(UserError, match='is not an earlier export but a prepared set of ttt-jax; '):
    owned.Building(tmp_path / 'data', 'an earlier export', '--out')
  with pytest.raises(UserError, match=r'--out: / is a mount point'):
    owned.Building('/', 'an earlier export', '--out')
  (tmp_path / 'loop').symlink_to('loop')
  for path in (tmp_path / 'loop', tmp_path / 'loop' / 'set'):
    with pytest.raises(UserError, match='loop.* could not be written: Too many levels of symbolic'):
      owned.resolve(path)
  (tmp_path / 'lost').symlink_to(tmp_path / 'unmounted' / 'set')
  with pytest.raises(UserError, match='whose disk or folder does not exist; mount it'):
    build(tmp_path / 'lost')
  (tmp_path / 'file').write_text('x')
  with pytest.raises(UserError, match='is not a prepared set but a file'):
    build(tmp_path / 'file')


KILLED = """
import os, sys
from ttt_jax.storage import owned
rename = os.rename
def die(source, target):
  rename(source, target)
  if len(sys.argv) > 2: os._exit(9)
os.rename = die
with owned.Building(sys.argv[1], 'a prepared set', '--out') as building:
  (building.folder / 'a.txt').write_text('half')
  if len(sys.argv) < 3: os._exit(9)
  building.commit()
"""


@pytest.mark.parametrize('between_renames', [False, True])
def test_a_killed_process_loses_nothing_and_is_cleaned_up(tmp_path, between_renames):
  build(tmp_path / 'data', 'old')
  (tmp_path / '.data-mine.new').mkdir()  # not ours: no marker
  subprocess.run([sys.executable, '-c', KILLED, str(tmp_path / 'data'), *['x'] * between_renames],
                 check=False, env=os.environ)
  assert len(list(tmp_path.iterdir())) == 3
  check = owned.Building(tmp_path / 'data', 'a prepared set', '--out')
  assert (tmp_path / 'data' / 'a.txt').read_text() == 'old'
  with check:
    pass
  assert sorted(path.name for path in tmp_path.iterdir()) == ['.data-mine.new', 'data']


def test_make_clean_removes_what_make_made_and_nothing_else(tmp_path):
  for name in ('demo/run', 'faults', 'build/site', 'tools/__pycache__'):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / 'a.pyc').write_text('made')
  (tmp_path / 'build' / 'mine').mkdir()
  owned.mark(tmp_path / 'demo', 'made by make')
  owned.mark(tmp_path / 'faults', 'made by make')
  (tmp_path / 'faults' / 'a.pyc').write_text('MADE')
  said = clean.clean(tmp_path)
  assert [sentence.split(' stays: ')[0] for sentence in said] == ['faults', 'build/mine']
  assert set(tree(tmp_path)) == {'faults', 'faults/.ttt-jax.json', 'faults/a.pyc', 'build',
                                 'build/mine', 'tools'}


def test_an_output_folder_keeps_what_others_put_there(tmp_path):
  (tmp_path / 'a.wav').write_text('mine')
  out = owned.Output(tmp_path, 'answers', '--out')
  out.claim('b.wav')
  (tmp_path / 'b.wav').write_text('1')  # and the process is killed: no finish()
  with pytest.raises(UserError, match='a.wav exists, and ttt-jax did not make it'):
    out.claim('a.wav')
  again = owned.Output(tmp_path, 'answers', '--out')
  again.claim('b.wav', 'c.wav')
  (tmp_path / 'b.wav').write_text('2')
  (tmp_path / 'c.wav').write_text('2')
  again.finish()
  third = owned.Output(tmp_path, 'answers', '--out')
  third.claim('b.wav')
  third.finish()
  assert (tmp_path / 'c.wav').read_text() == '2' and (tmp_path / 'a.wav').read_text() == 'mine'
  (tmp_path / 'b.wav').write_text('edited')
  with pytest.raises(UserError, match='b.wav exists, and ttt-jax did not make it or'):
    owned.Output(tmp_path, 'answers', '--out').claim('b.wav')
  (tmp_path / 'old.wav').write_text('0.1')
  (tmp_path / owned.MARKER).unlink()
  owned.Output(tmp_path, 'answers', '--out', lambda folder: ['old.wav']).claim('old.wav')


def test_an_output_folder_is_not_one_that_was_made_as_something_else(tmp_path):
  (tmp_path / 'rows').write_text('1')
  owned.mark(tmp_path, 'a prepared set')
  with pytest.raises(UserError, match='--out: .* holds a prepared set that ttt-jax made'):
    owned.Output(tmp_path, 'answers', '--out')
  assert owned.foreign(tmp_path) is None


@pytest.mark.parametrize('text, ours', [
    ('{"model": {}, "data": {}, "train": {}}', True), ('', True), ('\0\0\0', True),
    ('{"architectures": ["Qwen2ForCausalLM"]}', False), ('[]x', False), ('[1]', False),
    ('"x"', False), ('[' * 100_000, False)])
def test_single_files_are_known_by_what_they_hold(tmp_path, text, ours):
  path = tmp_path / 'config.json'
  path.write_text(text)
  if ours:
    owned.check_json(path, 'model', 'data', 'train')
  else:
    with pytest.raises(UserError, match='config.json exists and was not written by ttt-jax'):
      owned.check_json(path, 'model', 'data', 'train')
