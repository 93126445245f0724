"""Settings of the test process, made before anything imports JAX."""

import collections
import os
import pathlib
import signal
import tempfile

# A shell starts its background jobs with SIGINT ignored, and so would be all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# Eight virtual devices on the CPU, so that meshes can be tested anywhere.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Programs here are compiled for one small run each: quick compilation beats quick code.
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                             + f' --xla_force_host_platform_device_count=8 {QUICK}').strip()
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # as in cli.py: its threads mostly wait
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
# Compiling is what these tests spend their time on: compiled programs are kept from run to run
# and shared with the processes that tests start. A size limit turns on the cache's lock, which
# two workers writing the same entry need.
CACHE = pathlib.Path(os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                                           os.path.expanduser('~/.cache/ttt_jax_tests')))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ.setdefault('JAX_COMPILATION_CACHE_MAX_SIZE', str(2 * 2**30))

# Names of the user's classes are kept per account: tests have an account of their own.
os.environ['XDG_CONFIG_HOME'] = tempfile.mkdtemp(prefix='ttt_jax_tests-')

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Fixtures: object stores on loopback, started when a test asks for one.
from tests.storage.servers import (  # noqa: E402, F401
    bucket, gcs_server, gs_bucket, proxy, s3_bucket, s3_server)

# The same examples in every run: a failure in CI is a failure at the desk. No deadline,
# since the first example of a jitted function pays for its compilation.
hypothesis.settings.register_profile('ttt', derandomize=True, deadline=None)
hypothesis.settings.load_profile('ttt')


def pytest_sessionstart(session):
  """Remove cache entries that a killed process left half written: their time stamp is missing."""
  if not hasattr(session.config, 'workerinput'):
    for entry in CACHE.glob('*-cache'):
      if not entry.with_name(entry.name.removesuffix('cache') + 'atime').exists():
        entry.unlink(missing_ok=True)


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
  """The folder of prepared rows of small_run.config(), made once per worker; to be read only."""
  from tests import small_run
  from ttt_jax.data.prepare.prepare import prepare
  folder = tmp_path_factory.mktemp('prepared')
  prepare(small_run.config(), folder)
  return folder / 'data'


@pytest.fixture(scope='session')
def small_config(prepared):
  """small_run.config() on those rows."""
  from tests import small_run
  return small_run.replace(small_run.config(), 'data', path=str(prepared))


@pytest.fixture
def one_device():
  """Meshes that a config leaves open get one device: see small_run.one_device."""
  from tests import small_run
  with small_run.one_device():
    yield


# -- CPU seconds per test: TTT_JAX_TEST_CPU=FILE appends them, and a table per file is printed ---


def _cpu_seconds() -> float:
  """User and system time of this process with all its threads, and of its ended children."""
  return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
  item.cpu_start = _cpu_seconds()
  return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
  try:
    return (yield)
  finally:
    item.user_properties.append(('cpu', _cpu_seconds() - item.cpu_start))


def pytest_runtest_logreport(report):
  if report.when == 'teardown' and (file := os.environ.get('TTT_JAX_TEST_CPU')):
    if 'PYTEST_XDIST_WORKER' not in os.environ:
      with open(file, 'a', encoding='utf-8') as out:
        print(f'{dict(report.user_properties).get("cpu", 0):.2f}\t{report.nodeid}', file=out)


def pytest_terminal_summary(terminalreporter):
  file = os.environ.get('TTT_JAX_TEST_CPU')
  if not file or not os.path.exists(file):
    return
  seconds = collections.Counter()
  for line in pathlib.Path(file).read_text(encoding='utf-8').splitlines():
    value, test = line.split('\t', 1)
    seconds[test.partition('::')[0]] += float(value)
  terminalreporter.section('CPU seconds')
  for name, value in seconds.most_common():
    terminalreporter.write_line(f'{value:8.1f}  {name}')
  terminalreporter.write_line(f'{seconds.total():8.1f}  all tests, without collection')
