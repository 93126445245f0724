"""Checkpoints: what counts, what is set aside, what is kept, and what a refusal says."""

import errno
import json
import pathlib
import random
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checkpoint, checksums, metrics
from ttt_jax.train.state import TrainState


def state(value=1.0, width=3):
  return TrainState(jnp.int32(7), {'a': jnp.full((2, width), float(value))},
                    {'m': jnp.zeros(width)})


def target(**shape):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                      state(**shape))


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A directory with the sealed steps 10, 20 and 30, whose arrays hold their number."""
  folder = tmp_path_factory.mktemp('three')
  with checkpoint.Checkpoints(folder, keep=5) as saved:
    for step in (10, 20, 30):
      saved.save(step, state(step), {'data': {'next': step}}, scores={'loss': 1 / step})
  return folder


@pytest.fixture
def folder(three, tmp_path):
  return pathlib.Path(shutil.copytree(three, tmp_path / 'checkpoints'))


def test_what_is_saved_comes_back(folder):
  with checkpoint.Checkpoints(folder) as saved:
    assert saved.steps() == [10, 20, 30] and saved.recover() == 30
    assert saved.meta(20) == {'data': {'next': 20}} and saved.scores(20) == {'loss': 0.05}
    for mine, other in zip(jax.tree.leaves(saved.restore(20, target())),
                           jax.tree.leaves(state(20.0))):
      np.testing.assert_array_equal(mine, other)
    assert saved.restore_params(30, target().params)['a'][0, 0] == 30


def test_a_note_without_fingerprint_is_a_sentence(folder):
  with (checkpoint.Checkpoints(folder) as saved,
        pytest.raises(UserError, match='has no fingerprint')):
    saved.check_vocabulary(20, Vocabulary('bytes', 256, 'tone', 8))


def files_of(folder, step):
  return [path for path in sorted((folder / str(step)).rglob('*')) if path.is_file()]


def damage(path, how):
  text = bytearray(path.read_bytes())
  if how == 'flipped':
    place = random.Random(path.name).randrange(len(text))
    text[place] ^= 4
    path.write_bytes(text)
  elif how == 'cut':
    path.write_bytes(text[:len(text) // 2])
  else:
    path.unlink()


@pytest.mark.parametrize('how', ['flipped', 'cut', 'gone'])
def test_damage_to_any_file_is_found_and_named(three, tmp_path, how):
  for number, path in enumerate(files_of(three, 30)):
    if not path.stat().st_size:
      continue
    copy = tmp_path / str(number)
    for step in ('20', '30'):
      shutil.copytree(three / step, copy / step)
    broken = copy / path.relative_to(three)
    damage(broken, how)
    heard = []
    with checkpoint.Checkpoints(copy, log=heard.append) as saved:
      if how == 'gone' and path.name.startswith('sums'):
        assert saved.recover() == 20  # as if the run had been killed before it wrote them
        continue
      unread = path.parent.is_relative_to(three / '30' / 'optimizer')
      assert saved.newest_good() == (30 if unread else 20), path
      assert bool(heard) != unread
      assert saved.recover() == 20, path
      assert saved.steps() == [20] and (copy / '30.damaged').is_dir()
    assert str(broken) in heard[0] and 'checkpoint 30 is corrupt' in heard[0]


def test_readers_of_weights_verify_weights_alone(tmp_path):
  """With AdamW's two moments, a third of the arrays' bytes."""
  params = {'a': jax.random.normal(jax.random.key(0), (256, 256))}
  adam = optax.adamw(1e-3).init(params)
  noise = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape).astype(x.dtype),
                       adam)  # zeros would be compressed away
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(1, TrainState(jnp.int32(1), params, noise), {})
    saved.wait()
    assert saved.recover() == 1
    everything, saved.bytes_verified = saved.bytes_verified, 0
    assert saved.newest_good() == 1
    assert 0.3 < saved.bytes_verified / everything < 0.37
    shutil.rmtree(tmp_path / '1' / 'optimizer')  # a copy for generation can leave it out
    assert saved.newest_good() == 1
    np.testing.assert_array_equal(saved.restore_params(1, params)['a'], params['a'])
  assert checkpoint.Checkpoints(tmp_path).steps() == [1]
  with pytest.raises(UserError, match='corrupt'):
    checkpoint.Checkpoints(tmp_path).recover()


def test_sizes_alone_find_what_is_missing_or_cut(folder):
  damage(next(path for path in files_of(folder, 30) if path.parent.name == 'd'), 'flipped')
  with checkpoint.Checkpoints(folder, verify='sizes') as saved:
    assert saved.newest_good() == 30 and saved.bytes_verified == 0
    damage(folder / '30' / 'params' / 'manifest.ocdbt', 'cut')
    assert saved.newest_good() == 20
    damage(folder / '20' / 'params' / 'manifest.ocdbt', 'gone')
    assert saved.recover() == 10


def test_only_damaged_ones_are_no_reason_to_start_over(folder):
  for step in (10, 20, 30):
    damage(folder / str(step) / 'params' / 'manifest.ocdbt', 'cut')
  for _ in range(2):  # the second start finds them set aside
    with pytest.raises(UserError, match='all checkpoints in .* are corrupt'):
      checkpoint.Checkpoints(folder).recover()
  assert len(list(folder.glob('*.damaged'))) == 3


def test_what_a_kill_leaves_is_removed_and_saved_anew(folder):
  seal_of = folder / '30' / checksums.SEAL
  seal_of.unlink()
  (folder / '30' / checksums.sums_name(0)).unlink()
  shutil.copytree(folder / '20', folder / '40.orbax-checkpoint-tmp')
  (folder / '10.deleting').mkdir()
  (folder / '.saving.json').write_text('{"step": 30}')
  heard = []
  with checkpoint.Checkpoints(folder, log=heard.append) as saved:
    assert saved.latest() == 20
    assert saved.recover() == 20
    assert sorted(path.name for path in folder.iterdir()) == ['10', '20']
    assert heard == ['checkpoint 30 is unfinished and is removed.']
    saved.save(30, state(31.0), {})
    saved.wait()
    assert saved.latest() == 30 and saved.restore(30, target()).params['a'][0, 0] == 31
  assert checkpoint.Checkpoints(folder / 'nothing').recover() is None


def test_a_folder_that_no_save_made_is_set_aside(folder):
  (folder / '40').mkdir()
  (folder / '40' / 'thesis.txt').write_text('mine')
  (folder / '050').mkdir()
  (folder / '²').mkdir()
  heard = []
  with checkpoint.Checkpoints(folder, log=heard.append) as saved:
    assert saved.recover() == 30
    assert heard == ['checkpoint 40 has no checksums; it is renamed to 40.unfinished.']
    (folder / '40').mkdir()
    saved.save(40, state(), {})
    saved.wait()
    assert saved.latest() == 40
  assert (folder / '40.unfinished' / 'thesis.txt').read_text() == 'mine'
  assert {'40.unfinished-2', '050', '²'} <= {path.name for path in folder.iterdir()}
  assert not (folder / '.saving.json').exists()


@pytest.fixture
def immovable(folder, monkeypatch):
  """Checkpoint 10 cannot be removed, as one that is write-protected or open on NFS."""
  remove = shutil.rmtree
  def refuse(path, *args, **more):
    if pathlib.Path(path).name.startswith('10.'):
      raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    remove(path, *args, **more)
  monkeypatch.setattr(shutil, 'rmtree', refuse)
  return folder


def test_an_old_one_that_cannot_be_removed_is_a_warning(immovable, monkeypatch):
  heard = []
  with checkpoint.Checkpoints(immovable, keep=1, log=heard.append) as saved:
    for step in (40, 50):
      saved.save(step, state(step), {})
      saved.wait()
    assert saved.steps() == [50]
  assert heard == ['checkpoint 10 could not be removed (Permission denied); it is tried again '
                   'later.']
  assert (immovable / '10.deleting').is_dir()
  with checkpoint.Checkpoints(immovable, log=heard.append) as saved:
    assert saved.recover() == 50  # steps over what it cannot remove
  monkeypatch.undo()
  with checkpoint.Checkpoints(immovable) as saved:
    assert saved.recover() == 50
  assert [path.name for path in immovable.iterdir()] == ['50']


def test_a_checkpoint_that_is_read_is_kept_and_a_reader_that_is_gone_is_forgotten(folder):
  with checkpoint.open_existing(folder) as reader:
    assert reader.newest_good() == 30
    (pin,) = folder.glob('.reading-30-*.json')
    gone = json.loads(pin.read_text()) | {'started': '1'}
    (folder / f'.reading-20-{"0" * 32}.json').write_text(json.dumps(gone))
    (folder / f'.reading-10-{"0" * 32}.json').write_text('{')
    with checkpoint.Checkpoints(folder, keep=1) as saved:
      saved.save(40, state(40), {})
      saved.wait()
      assert saved.steps() == [30, 40]
  with checkpoint.Checkpoints(folder, keep=1) as saved:
    saved.save(50, state(50), {})
    saved.wait()
    assert saved.steps() == [50]


def test_a_reader_whose_checkpoint_is_removed_reads_the_newer_one(folder):
  tried = []
  def read(found, step):
    tried.append(step)
    if step < 60:  # the run goes on, and could not be asked to keep it
      with checkpoint.Checkpoints(folder, keep=10) as saved:
        saved.save(step + 10, state(step + 10), {})
      shutil.rmtree(folder / str(step))
    return float(found.restore_params(step, target().params)['a'][0, 0])
  assert checkpoint.read_newest(folder, read) == 60
  assert tried == [30, 40, 50, 60]
  def broken(found, step):
    raise ValueError('not because of the disk')
  with pytest.raises(ValueError, match='not because'):
    checkpoint.read_newest(folder, broken)


def test_a_reader_may_name_the_step(folder):
  read = lambda found, step: found.restore_params(step, target().params)['a'][0, 0]
  assert checkpoint.read_step(folder, 20, read) == 20
  assert not list(folder.glob('.reading-*'))
  for step in (15, -1):
    with pytest.raises(UserError, match=f'no checkpoint {step} in .*, which has 10, 20, 30; name'):
      checkpoint.read_step(folder, step, read)
  for file in (folder / '20').rglob('*'):
    if file.is_file() and 'params' in file.parts:
      file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(UserError, match='checkpoint .*/20 is corrupt'):
    checkpoint.read_step(folder, 20, read)
  assert checkpoint.read_newest(folder, read) == 30


def test_an_older_one_without_its_seal_is_set_aside(folder):
  (folder / '10' / checksums.SEAL).unlink()
  (folder / '10' / checksums.sums_name(0)).unlink()
  with checkpoint.Checkpoints(folder) as saved:
    assert saved.recover() == 30
  assert (folder / '10.damaged').is_dir()


def test_several_processes_share_the_work(folder, tmp_path):
  whole = tmp_path / 'whole'
  shutil.copytree(folder / '10', whole)
  for path in (whole / checksums.SEAL, whole / checksums.sums_name(0)):
    path.unlink()
  others = [threading.Thread(target=checksums.write, args=(whole, process, 3, {}))
            for process in (1, 2)]
  for thread in others:
    thread.start()
  checksums.write(whole, 0, 3, {'a': 1})
  for thread in others:
    thread.join()
  assert checksums.is_complete(whole) and checksums.read_metadata(whole)['a'] == 1
  checksums.check(whole)
  (whole / checksums.sums_name(2)).rename(tmp_path / 'sums')
  assert not checksums.is_complete(whole)
  (tmp_path / 'sums').rename(whole / checksums.sums_name(2))
  damage(whole / 'params' / 'manifest.ocdbt', 'flipped')
  found = 0
  for process in range(2):  # fewer readers than there were writers
    try:
      checksums.check(whole, process, 2)
    except checksums.CorruptCheckpoint as error:
      found += 'manifest.ocdbt has checksum' in str(error)
  assert found == 1


def test_the_rules_of_what_is_kept():
  note = lambda clean=True, **scores: {'clean': clean, 'scores': scores}
  notes = {10: note(loss=3.0), 20: note(loss=1.0), 30: note(loss=2.0), 40: note(), 50: note(),
           60: note(clean=False, loss=float('nan'))}
  assert checkpoint.kept(notes, 1, 0, '') == {50, 60}, 'a run may have to go back behind 60'
  assert checkpoint.kept(notes, 2, 0, '') == {40, 50, 60}
  assert checkpoint.kept(notes, 1, 30, '') == {30, 50, 60}
  assert checkpoint.kept(notes, 1, 0, 'loss') == {20, 50, 60}
  assert checkpoint.kept(notes, 1, 0, 'text_nll') == {50, 60}
  assert checkpoint.kept({}, 3, 10, 'loss') == set()


def test_keeping_happens_on_the_disk(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=1, keep_every=20, keep_best='loss') as saved:
    for step, score in ((10, 1.0), (20, 3.0), (30, 2.0), (40, 4.0), (50, 5.0)):
      saved.save(step, state(step), {}, scores={'loss': score})
    saved.wait()
    assert saved.steps() == [10, 20, 40, 50]
    saved.drop_after(20)
    assert saved.steps() == [10, 20]
    assert saved.newest_clean() == 20


def test_every_mismatch_is_named_with_both_shapes(folder):
  with checkpoint.Checkpoints(folder) as saved:
    wanted = target(width=4)._replace(step=jax.ShapeDtypeStruct((), jnp.float32))
    wanted.params['b'] = wanted.params['a']
    wanted.opt_state.pop('m')
    with pytest.raises(UserError, match='params.a: .* and 1 more array; use the settings'):
      saved.restore(10, wanted)
    found = saved.differences(10, wanted._asdict())
    for words in ('params.a: checkpoint has (2, 3) float32, this config needs (2, 4) float32',
                  'params.b: checkpoint has nothing, this config needs (2, 4) float32',
                  'opt_state.m: checkpoint has (3,) float32, this config needs nothing',
                  'step: checkpoint has () int32, this config needs () float32'):
      assert words in found
    with pytest.raises(UserError, match=r'params\.a: checkpoint has \(2, 3\)'):
      saved.restore_params(10, target(width=4).params)


def test_a_full_disk_is_one_sentence(tmp_path):
  told = ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes [os_error_code='28']")
  assert files.system_code(told) == errno.ENOSPC
  wrapped = RuntimeError('while saving')
  wrapped.__cause__ = OSError(errno.EDQUOT, 'quota')
  assert 'quota of the disk' in str(files.cannot_write('x', wrapped))
  assert files.system_code(ValueError('shape')) == 0
  (tmp_path / metrics.FILE).symlink_to('/dev/full')
  writer = metrics.Writer(tmp_path, tensorboard=False)
  with pytest.raises(UserError, match='metrics.jsonl could not be written: the disk is full'):
    writer.write(1, {'loss': 2.0})


def test_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
  path = tmp_path / 'status.json'
  files.write_text(path, 'old', durable=True)

  def refuse(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')
  monkeypatch.setattr(files.os, 'replace', refuse)
  with pytest.raises(UserError, match='disk is full; free some space, then run'):
    files.write_text(path, 'new')
  assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_a_seal_is_readable(folder):
  text = (folder / '20' / checksums.SEAL).read_text()
  assert json.loads(text.partition(' ')[2])['processes'] == 1
