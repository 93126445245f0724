"""How long requests to a store that fails are repeated."""

import threading

import pytest

from ttt_jax.errors import RetryableError
from ttt_jax.storage import buckets, outages


class Request:
  """Fails so many times, then gives its number."""

  def __init__(self, failures=10**9):
    self.failures, self.count = failures, 0
    self.asked = threading.Event()

  def __call__(self):
    self.count += 1
    self.asked.set()
    if self.count <= self.failures:
      raise outages.Transient('HTTP 503')
    return self.count


@pytest.fixture
def outage(monkeypatch):
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 0.2)
  return outages.Outage()


def give_up(outage):
  request = Request()
  with pytest.raises(RetryableError, match=r'x could not be read for 0\.\d seconds: HTTP 503; run'):
    outage.repeated('x could not be read', request)
  return request.count


def test_a_request_is_repeated_until_it_succeeds(outage):
  assert outage.repeated('x', Request(2)) == 3
  assert outage.seconds() == 0


def test_after_one_limit_nothing_else_is_repeated_until_a_success(outage):
  assert give_up(outage) > 2 and give_up(outage) == 1 and outage.seconds() > 0
  assert outage.repeated('x', Request(0)) == 1
  assert outage.seconds() == 0 and give_up(outage) > 2


def test_a_silent_store_is_not_even_asked_for_a_while(outage, monkeypatch):
  outage.give_up(silent=True)
  request = Request(0)
  with pytest.raises(RetryableError, match='x: its store has not answered for'):
    outage.repeated('x', request)
  assert request.count == 0
  monkeypatch.setattr(outages, 'PAUSE', 0.0)
  assert outage.repeated('x', request) == 1


def test_work_in_the_background_gives_up_for_itself(outage):
  with outages.in_background(threading.Event()):
    assert give_up(outage) > 2
  with outages.tried_once():
    assert give_up(outage) == 1
  assert give_up(outage) > 2


def test_an_answer_is_no_failure(outage):
  outage.give_up()
  def missing():
    raise buckets.Missing
  with pytest.raises(buckets.Missing):
    outage.repeated('x', missing)
  assert give_up(outage) > 2


def test_a_lost_store_ends_the_repeats_of_all_threads(outage, monkeypatch):
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 1e9)
  monkeypatch.setattr(outages, '_LONGEST_WAIT', 0.01)
  request, said = Request(), []
  def work():
    with pytest.raises(RetryableError) as error:
      outage.repeated('x', request)
    said.append(str(error.value))
  thread = threading.Thread(target=work)
  thread.start()
  request.asked.wait()
  outage.give_up()
  thread.join()
  assert len(said) == 1


def test_stores_are_apart():
  assert outages.of('gs://a/b/c') is outages.of('gs://a') is not outages.of('s3://a')


def test_an_error_raised_from_itself_has_a_kind():
  error = RetryableError('x')
  error.__cause__ = ValueError('y')
  error.__cause__.__cause__ = error
  assert buckets.kind(error) == ''


def test_wrong_settings_are_no_bug():
  errors = pytest.importorskip('botocore.exceptions')
  for error in (ValueError('Invalid endpoint: foo'), errors.ConfigParseError(path='/x/config'),
                errors.InvalidRegionError(region_name='x y'), RecursionError()):
    with pytest.raises(buckets.Denied, match='check AWS_'):
      with buckets._translated('s3'):
        raise error
