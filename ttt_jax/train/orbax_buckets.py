"""What Orbax and TensorStore need for checkpoints in buckets, and what their errors mean.

Orbax reads and writes gs:// itself. It refuses s3://, although TensorStore has a driver for it:
five private functions decide what a bucket is, and are replaced here. That holds for the version
below; with another one s3:// is refused. gs:// needs nothing private but a limit on repeats.
"""

import functools
import os
from typing import Any
from urllib import parse

import orbax.checkpoint as ocp

from ttt_jax.errors import UserError
from ttt_jax.storage import buckets, outages

TESTED = '0.12.8'  # of orbax-checkpoint, for s3://
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 16.0  # seconds
_SILENT_SECONDS = 10.0  # of requests for small objects


def prepare(url: str) -> None:
  """Make Orbax ready for a URL.

  Raises:
    UserError: s3:// with a version of Orbax other than the tested one, or a package is missing.
  """
  scheme = url.partition('://')[0]
  buckets.connect(scheme)
  import fsspec.config
  # Orbax lists folders and writes small objects through fsspec, which would answer from memory, and
  # would wait for minutes for a silent server.
  names, settings = _fsspec(scheme)
  for name in names:
    fsspec.config.conf.setdefault(name, {}).update({'use_listings_cache': False, **settings})
  _limit_repeats()
  if scheme == 's3':
    if ocp.__version__ != TESTED:
      raise UserError(f'checkpoints at s3:// were tested with orbax-checkpoint {TESTED}, and '
                      f'{ocp.__version__} is installed; install that version, or use gs://.')
    _accept_s3()


def _fsspec(scheme: str) -> tuple[tuple[str, str], dict[str, Any]]:
  """(names of a store in fsspec, its settings)."""
  if scheme == 's3':
    return ('s3', 's3a'), {'config_kwargs': {
        'connect_timeout': buckets.CONNECT_SECONDS, 'read_timeout': _SILENT_SECONDS}}
  import aiohttp
  return ('gs', 'gcs'), {'requests_timeout': aiohttp.ClientTimeout(
      total=None, sock_connect=buckets.CONNECT_SECONDS, sock_read=_SILENT_SECONDS)}


def _limit_repeats() -> None:
  """TensorStore repeats failing requests 32 times, a quarter of an hour; here for a minute."""
  from orbax.checkpoint._src.serialization import tensorstore_utils
  count, wait, total = 0, _FIRST_WAIT, 0.0
  while total < outages.RETRY_SECONDS:
    count, total, wait = count + 1, total + wait, min(2 * wait, _LONGEST_WAIT)
  repeats = {'max_retries': count, 'initial_delay': f'{_FIRST_WAIT:g}s',
             'max_delay': f'{_LONGEST_WAIT:g}s'}
  for name in ('_BASE_TS_CONTEXT', '_DEFAULT_OCDBT_TS_CONTEXT'):
    context = getattr(tensorstore_utils, name, None)
    if isinstance(context, dict):  # another Orbax has the longer limit
      context |= {'gcs_request_retries': repeats, 's3_request_retries': repeats}


@functools.cache
def _accept_s3() -> None:
  """Let the functions of Orbax that recognise gs:// recognise s3://, too."""
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils
  is_s3 = lambda path: str(path).startswith(('s3://', 's3:/'))
  is_gcs, kvstore, rmtree = (gcs_utils.is_gcs_path, gcs_utils.get_kvstore_for_gcs,
                             gcs_utils.rmtree)
  uses_gcs, normalize = tensorstore_utils._use_gcs_driver, tensorstore_utils._normalize_path

  def removed(path: Any, **options: Any) -> Any:
    if is_s3(path):
      return path.rmtree(missing_ok=options.get('missing_ok', False))
    return rmtree(path, **options)

  gcs_utils.is_gcs_path = lambda path: is_s3(path) or is_gcs(path)
  gcs_utils.get_kvstore_for_gcs = lambda path: _s3_spec(path) if is_s3(path) else kvstore(path)
  gcs_utils.rmtree = removed
  tensorstore_utils._use_gcs_driver = lambda folder: is_s3(folder) or uses_gcs(folder)
  tensorstore_utils._normalize_path = lambda path: (
      's3://' + normalize(path.partition(':')[2]).lstrip('/') if is_s3(path) else normalize(path))


def _s3_spec(url: str) -> dict[str, Any]:
  """TensorStore's key-value store of a URL; its driver does not read AWS_ENDPOINT_URL."""
  found = parse.urlparse(url)
  spec: dict[str, Any] = {'driver': 's3', 'bucket': found.netloc, 'path': found.path.lstrip('/')}
  endpoint = os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
  region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
  if endpoint:
    spec |= {'endpoint': endpoint, 'aws_region': region or 'us-east-1'}
  elif region:
    spec['aws_region'] = region
  if os.environ.get('AWS_ACCESS_KEY_ID'):  # otherwise it searches for files, and reports each
    spec['aws_credentials'] = {'type': 'environment'}
  elif profile := os.environ.get('AWS_PROFILE') or os.environ.get('AWS_DEFAULT_PROFILE'):
    spec['aws_credentials'] = {'type': 'default', 'profile': profile}
  return spec
