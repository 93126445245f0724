"""Leases of workdirs in buckets."""

import json
import time

import pytest

from ttt_jax.errors import UserError
from ttt_jax.storage import lease, remote
from ttt_jax.storage.bucket_lease import BucketLease


def elsewhere(url, **changes):
  """As if the owner ran on another machine."""
  note = json.loads(remote.read_bytes(url + '/.owner.json'))
  note['process'] |= {'machine': 'other', 'host': 'far-away'}
  remote.write_bytes(url + '/.owner.json', json.dumps(note | changes).encode())


def test_one_of_two_owns_it(bucket):
  with BucketLease(bucket) as one:
    with pytest.raises(lease.InUse, match='in use by process'):
      BucketLease(bucket).acquire()
    one.confirm()
  with BucketLease(bucket) as two:
    two.check()


def test_a_silent_owner_elsewhere_has_ended(bucket):
  one = BucketLease(bucket, beat=100)
  one.acquire()
  elsewhere(bucket)
  said = []
  with BucketLease(bucket, silence=1.2, say=said.append) as two:
    assert 'silent' in said[0] and 'far-away' in said[0]
    with pytest.raises(UserError, match='taken over by process'):
      one.confirm()
    two.confirm()
  one.release()
  assert json.loads(remote.read_bytes(bucket + '/.owner.json'))['token'] == ''


def test_an_owner_elsewhere_that_writes_lives(bucket):
  with BucketLease(bucket, beat=100):
    elsewhere(bucket)
    looks = []
    def say(sentence):
      looks.append(sentence)
      elsewhere(bucket, beat=time.time())
    with pytest.raises(lease.InUse, match='on far-away'):
      BucketLease(bucket, silence=4, say=say).acquire()
    assert looks


def test_an_ending_owner_is_waited_for(bucket):
  one = BucketLease(bucket, is_ending=lambda: True)
  one.acquire()
  with pytest.raises(lease.InUse):
    BucketLease(bucket, ending=0.5).acquire()
  one.release()
