"""The local copies of a workdir in a bucket."""

import pytest

from ttt_jax.errors import UserError
from ttt_jax.storage import mirror, outages, owned, remote


@pytest.fixture
def machine(bucket, tmp_path, monkeypatch):
  """Machine number N with its own cache: (N, is_run) -> its mirror of the workdir."""
  def one(number, is_run=False):
    monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path / f'machine{number}'))
    return mirror.Mirror(mirror.folder_of(bucket + '/run'), is_run=is_run)
  return one


@pytest.fixture
def on(tmp_path, monkeypatch):
  return lambda number: monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path / f'machine{number}'))


def write(mirrored, **contents):
  for name, text in contents.items():
    path = mirrored.folder / name.replace('__', '/').replace('_', '.')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_names(tmp_path, monkeypatch):
  monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path))
  folder = mirror.folder_of('gs://bucket/sweeps/a/')
  assert mirror.url_of(folder) == 'gs://bucket/sweeps/a'
  assert mirror.url_of(folder / 'member') == 'gs://bucket/sweeps/a/member'
  assert mirror.url_of(tmp_path) is None and mirror.url_of('s3://b/c') == 's3://b/c'
  assert mirror.named(folder) == 'gs://bucket/sweeps/a' and mirror.named('demo') == 'demo'
  assert mirror.in_urls(f'no {folder}/data') == 'no gs://bucket/sweeps/a/data'


def test_files_go_up_and_come_down(machine):
  one = machine(1, is_run=True)
  write(one, config_json='{}', status_json='1', samples__a_txt='a', checkpoints__4__x='no',
        data__manifest_json='no', data__rows='no', _hidden='no')
  one.download()
  (one.folder / 'samples' / owned.MARKER).write_text('{}')
  assert sorted(one.upload()) == ['config.json', 'samples/.ttt-jax.json', 'samples/a.txt',
                                  'status.json']
  assert one.upload() == []
  assert sorted(remote.files(one.url)) == ['config.json', 'samples/.ttt-jax.json',
                                           'samples/a.txt', 'status.json']
  other = machine(2)
  other.download()
  assert (other.folder / 'samples/a.txt').read_text() == 'a'
  assert other.upload() == []
  write(other, samples__b_txt='b', status_json='not mine')
  assert other.upload() == ['samples/b.txt']
  one = machine(1)
  one.download()
  assert (one.folder / 'samples/b.txt').read_text() == 'b'
  assert (one.folder / 'status.json').read_text() == '1'


def test_files_that_grow_are_parts(machine, monkeypatch):
  monkeypatch.setattr(mirror, 'PART', 100)
  one = machine(1)
  lines = [f'{{"step": {number}}}\n' for number in range(40)]
  write(one, metrics_jsonl=''.join(lines[:5]))
  one.upload()
  with (one.folder / 'metrics.jsonl').open('a') as file:
    file.write(''.join(lines[5:]))
  before = remote.files(one.url)['metrics.jsonl']
  one.upload()
  parts = sorted(remote.files(one.url))
  assert parts[:2] == ['metrics.jsonl', 'metrics.jsonl.0001'] and len(parts) == 6
  assert b''.join(remote.read_bytes(remote.join(one.url, part)) for part in parts) == ''.join(
      lines).encode()
  with (one.folder / 'metrics.jsonl').open('a') as file:
    file.write(lines[0])
  full = remote.files(one.url)['metrics.jsonl']
  one.upload()
  assert remote.files(one.url)['metrics.jsonl'] == full != before  # only the last part again
  other = machine(2)
  other.download()
  assert (other.folder / 'metrics.jsonl').read_text() == ''.join(lines) + lines[0]
  (other.folder / 'new').write_text(''.join(lines[:10]))
  (other.folder / 'new').replace(other.folder / 'metrics.jsonl')  # after a rollback
  other.upload()
  assert sorted(remote.files(one.url)) == ['metrics.jsonl', 'metrics.jsonl.0001']


def test_lines_of_two_machines_are_joined(machine, on):
  one = machine(1)
  write(one, metrics_jsonl='1\n')
  one.upload()
  two = machine(2)
  two.download()
  for number, each in ((1, one), (2, two)):
    on(number)
    with (each.folder / 'metrics.jsonl').open('a') as file:
      file.write(f'of {number}\n')
    each.upload()
  assert (two.folder / 'metrics.jsonl').read_text() == '1\nof 2\nof 1\n'
  two.upload()
  on(1)
  one.download()
  assert sorted((one.folder / 'metrics.jsonl').read_text().split('\n')) == [
      '', '1', 'of 1', 'of 2']


def test_a_second_run_is_noticed(machine, on):
  one = machine(1, is_run=True)
  write(one, status_json='one')
  one.upload()
  two = machine(2, is_run=True)
  two.download()
  write(two, status_json='two!')
  two.upload()
  on(1)
  write(one, status_json='one again')
  with pytest.raises(mirror.Lost, match='taken over'):
    one.upload()
  assert remote.read_bytes(one.url + '/status.json') == b'two!'


def test_what_was_removed_is_removed(machine, on):
  one = machine(1)
  write(one, samples__a='a', samples__b='b')
  with one:
    one.upload()
    (one.folder / 'samples/a').unlink()
  assert list(remote.files(one.url)) == ['samples/b']
  two = machine(2)
  two.download()
  remote.remove_folder(one.url)
  two.download()
  assert not [path for path in two.folder.rglob('*') if path.is_file()]


def test_what_a_killed_run_did_not_copy_is_kept_here_and_lost_to_a_newer_run(machine, on):
  one = machine(1)
  write(one, metrics_jsonl='1\n')
  one.upload()
  write(one, metrics_jsonl='1\n2\n')      # killed before it was copied
  one.download()
  assert (one.folder / 'metrics.jsonl').read_text() == '1\n2\n'
  two = machine(2)
  two.download()
  write(two, metrics_jsonl='1\nother 2\n')
  two.upload()
  on(1)
  one.download(keep_changes=False)         # the run goes on from the bucket
  assert (one.folder / 'metrics.jsonl').read_text() == '1\nother 2\n'


def test_one_failed_copy_is_repeated(machine, monkeypatch):
  one = machine(1)
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 0.1)
  write(one, a_txt='a')
  url, one.url = one.url, one.url.replace('://bucket', '://nobody')
  with pytest.raises(Exception, match='nobody'):
    one.upload()
  one.url = url
  assert one.upload() == ['a.txt'] and remote.exists(url + '/a.txt')
  one.url = url.replace('://bucket', '://nobody')
  with pytest.raises(UserError, match='nobody'):  # at the end it is an error
    with one:
      write(one, a_txt='aa')
  one.url = url
  one.upload()
  assert remote.read_bytes(url + '/a.txt') == b'aa'


def test_an_object_is_no_workdir(gs_bucket, on):
  """A local folder of its name would hide the object from the workdir that it belongs to."""
  on(1)
  remote.write_bytes(f'{gs_bucket}/run/status.json', b'{}')
  with pytest.raises(UserError, match='status.json is an object; name a folder, such as .*/run'):
    mirror.copied(f'{gs_bucket}/run/status.json')
  assert (mirror.copied(f'{gs_bucket}/run') / 'status.json').read_text() == '{}'
