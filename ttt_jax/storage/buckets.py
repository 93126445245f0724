"""One request each to Google Cloud Storage (gcsfs) or an S3 server (s3fs), for storage/remote.py.

Both libraries are optional and report errors in their own ways. Here every request ends in a
result or in one of four exceptions: Missing, Exists, Denied, Transient. The repeats of the
libraries are switched off; remote.py repeats.
"""

import base64
import contextlib
import dataclasses
import datetime
import errno
import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import socket
import time
from typing import Any, BinaryIO, Protocol

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage.outages import Answer, Transient

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0        # without a byte from the server
_PART = 50 * 2**20           # bytes of one request of a large upload
_CHUNK = 2**20               # bytes read at once
_MD5 = re.compile('[0-9a-f]{32}')
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504}
_BROKEN = {errno.EREMOTEIO, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EPIPE,
           errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBUSY}


class Missing(Answer):
  """No such object or bucket."""


class Exists(Answer):
  """The condition of a write does not hold."""


class Denied(Answer):
  """No permission or no credentials; what to do about it."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """An object in a listing.

  Attributes:
    size: bytes.
    time: of its last write, seconds since the epoch.
    checksum: CRC32C in base64 (GCS) or the ETag (S3).
    generation: the version's number (GCS); 0 on S3, where the ETag stands for the version.
  """
  size: int
  time: float
  checksum: str
  generation: int = 0


class Store(Protocol):
  """Requests of one kind of store; each raises the exceptions above."""

  def list(self, bucket: str, prefix: str, most: int) -> dict[str, Entry]: ...
  def children(self, bucket: str, prefix: str) -> dict[str, Entry | None]: ...
  def stat(self, bucket: str, key: str) -> Entry: ...
  def read(self, bucket: str, key: str) -> bytes: ...
  def read_range(self, bucket: str, key: str, start: int, end: int, entry: Entry) -> bytes: ...
  def write(self, bucket: str, key: str, data: bytes, **condition: Any) -> Entry: ...
  def create_condition(self) -> dict[str, Any]: ...
  def same_condition(self, entry: Entry) -> dict[str, Any]: ...
  def remove(self, bucket: str, key: str) -> None: ...
  def download(self, bucket: str, key: str, path: pathlib.Path, entry: Entry) -> None: ...
  def upload(self, bucket: str, key: str, path: pathlib.Path) -> None: ...
  def copy(self, bucket: str, key: str, other: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Bucket:
  """The requests to one bucket."""
  store: Store
  scheme: str
  name: str

  def list(self, prefix: str, most: int = 0) -> dict[str, Entry]:
    """Objects whose names begin with ``prefix``; ``most``: at most so many, in one request."""
    with _translated(self.scheme):
      return self.store.list(self.name, prefix, most)

  def children(self, prefix: str) -> dict[str, Entry | None]:
    """As ``list`` without what is in folders below; a folder's name ends with '/', its value is
    None."""
    with _translated(self.scheme):
      return self.store.children(self.name, prefix)

  def stat(self, key: str) -> Entry:
    with _translated(self.scheme):
      return self.store.stat(self.name, key)

  def read(self, key: str) -> bytes:
    with _translated(self.scheme):
      return self.store.read(self.name, key)

  def read_range(self, key: str, start: int, end: int, entry: Entry) -> bytes:
    """Bytes start to end of the version ``entry``."""
    with _translated(self.scheme):
      data = self.store.read_range(self.name, key, start, end, entry)
    if len(data) != end - start:
      raise Transient(f'{len(data)} instead of {end - start} bytes arrived')
    return data

  def write(self, key: str, data: bytes) -> Entry:
    with _translated(self.scheme):
      return self.store.write(self.name, key, data)

  def create(self, key: str, data: bytes) -> Entry:
    with _translated(self.scheme):
      return self.store.write(self.name, key, data, **self.store.create_condition())

  def write_if(self, key: str, data: bytes, entry: Entry) -> Entry:
    """Replace the version ``entry``."""
    with _translated(self.scheme):
      try:
        return self.store.write(self.name, key, data, **self.store.same_condition(entry))
      except FileNotFoundError:
        raise Exists from None  # removed by now (or the bucket is)

  def remove(self, key: str) -> None:
    with _translated(self.scheme):
      self.store.remove(self.name, key)

  def download(self, key: str, path: pathlib.Path, entry: Entry) -> None:
    """The version ``entry`` to a file, compared with its size and, on GCS, its CRC32C."""
    with _translated(self.scheme):
      self.store.download(self.name, key, path, entry)
    size = path.stat().st_size
    if size != entry.size:
      raise Transient(f'{size:,} instead of {entry.size:,} bytes arrived')
    if entry.generation and entry.checksum and crc32c(path) != entry.checksum:
      raise Transient('what arrived has another CRC32C')

  def upload(self, key: str, path: pathlib.Path) -> None:
    with _translated(self.scheme):
      self.store.upload(self.name, key, path)

  def copy(self, key: str, other: str) -> None:
    with _translated(self.scheme):
      self.store.copy(self.name, key, other)


def connect(scheme: str) -> Store:
  """The store of a scheme, one per process.

  Raises:
    UserError: its package is not installed.
  """
  return _connect(scheme, os.getpid())  # after a fork the connections are the parent's


@functools.lru_cache(maxsize=None)
def _connect(scheme: str, pid: int) -> Store:
  try:
    return {'gs': Gcs, 's3': S3}[scheme]()
  except ImportError as error:
    extra = {'gs': 'gcs', 's3': 's3'}[scheme]
    raise UserError(f'{scheme}:// needs the package {error.name}; install it with '
                    f'`pip install "ttt_jax[{extra}]"`.') from None
  except Exception as error:
    known = _translation(error, scheme)
    if isinstance(known, Denied):
      raise UserError(f'{scheme}:// cannot be used: {known}.') from None
    raise


# -- Google Cloud Storage -------------------------------------------------------------------------


class Gcs:
  """gcsfs; its JSON requests where its file operations need more than one."""

  def __init__(self):
    import aiohttp
    import gcsfs
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # it logs what it raises
    logging.getLogger('google.auth').setLevel(logging.ERROR)  # places without credentials
    self._fs: Any = gcsfs.GCSFileSystem(
        skip_instance_cache=True, use_listings_cache=False,
        requests_timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS,
                                               sock_read=SILENT_SECONDS))
    request = type(self._fs)._request
    plain = getattr(request, '__wrapped__', None)
    if plain is not None:  # without gcsfs' own repeats, which take half a minute and log
      self._fs._request = functools.partial(plain, self._fs)

  def list(self, bucket, prefix, most):
    found, token = {}, None
    while True:
      page = self._fs.call(
          'GET', 'b/{}/o', bucket, prefix=prefix or None, maxResults=most or 1000,
          pageToken=token, fields='nextPageToken,items(name,size,crc32c,generation,updated)',
          json_out=True)
      found |= {item['name']: self._entry(item) for item in page.get('items', [])}
      token = page.get('nextPageToken')
      if not token or most:
        return found

  def children(self, bucket, prefix):
    found, token = {}, None
    while True:
      page = self._fs.call(
          'GET', 'b/{}/o', bucket, prefix=prefix or None, delimiter='/', pageToken=token,
          fields='nextPageToken,prefixes,items(name,size,crc32c,generation,updated)',
          json_out=True)
      found |= {item['name']: self._entry(item) for item in page.get('items', [])}
      found |= dict.fromkeys(page.get('prefixes', []))
      token = page.get('nextPageToken')
      if not token:
        return found

  def stat(self, bucket, key):
    return self._entry(self._fs.call('GET', 'b/{}/o/{}', bucket, key, json_out=True))

  @staticmethod
  def _entry(item: dict[str, Any]) -> Entry:
    return Entry(int(item['size']), _seconds(item.get('updated', '')), item.get('crc32c', ''),
                 int(item.get('generation', 0)))

  def read(self, bucket, key):
    headers, data = self._fs.call('GET', self._fs.url(f'{bucket}/{key}'))
    sums = dict(one.strip().partition('=')[::2]
                for one in headers.get('X-Goog-Hash', '').split(','))
    if sums.get('crc32c', '') not in ('', _crc32c_of(data)):
      raise Transient('what arrived has another CRC32C')
    return data

  def read_range(self, bucket, key, start, end, entry):
    url = self._fs.url(f'{bucket}/{key}', generation=entry.generation or None)
    return self._fs.call('GET', url, headers={'Range': f'bytes={start}-{end - 1}'})[1]

  def write(self, bucket, key, data, **condition):
    crc = _crc32c_of(data)
    about = json.dumps({'name': key} | ({'crc32c': crc} if crc else {}))
    line = hashlib.sha256(data).hexdigest()[:40]
    body = (f'--{line}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n--{line}'
            f'\r\nContent-Type: application/octet-stream\r\n\r\n').encode() + data + (
                f'\r\n--{line}--').encode()
    return self._entry(self._fs.call(
        'POST', f'{self._fs._location}/upload/storage/v1/b/{{}}/o', bucket,
        uploadType='multipart', data=body, json_out=True,
        headers={'Content-Type': f'multipart/related; boundary={line}'}, **condition))

  def create_condition(self):
    return {'ifGenerationMatch': '0'}

  def same_condition(self, entry):
    return {'ifGenerationMatch': str(entry.generation)}

  def remove(self, bucket, key):
    self._fs.call('DELETE', 'b/{}/o/{}', bucket, key)

  def download(self, bucket, key, path, entry):
    self._fs.get_file(f'{bucket}/{key}', str(path), concurrency=1)

  def upload(self, bucket, key, path):
    if path.stat().st_size <= _PART:
      self.write(bucket, key, path.read_bytes())
    else:
      self._fs.put_file(str(path), f'{bucket}/{key}', chunksize=_PART, consistency='md5')

  def copy(self, bucket, key, other):
    self._fs.cp_file(f'{bucket}/{key}', f'{bucket}/{other}')


# -- S3 -------------------------------------------------------------------------------------------


class S3:
  """s3fs; its botocore requests where its file operations need more than one."""

  def __init__(self):
    import s3fs
    logging.getLogger('s3fs').setLevel(logging.CRITICAL)
    self._fs: Any = s3fs.S3FileSystem(
        skip_instance_cache=True, use_listings_cache=False,
        config_kwargs={'connect_timeout': CONNECT_SECONDS, 'read_timeout': SILENT_SECONDS,
                       'retries': {'total_max_attempts': 1}})
    self._fs.retries = 1

  def list(self, bucket, prefix, most):
    found, token = {}, {}
    while True:
      page = self._fs.call_s3('list_objects_v2', Bucket=bucket, Prefix=prefix,
                              MaxKeys=most or 1000, **token)
      found |= {item['Key']: self._entry(item, 'Size') for item in page.get('Contents', [])}
      if most or not page.get('IsTruncated'):
        return found
      token = {'ContinuationToken': page['NextContinuationToken']}

  def children(self, bucket, prefix):
    found, token = {}, {}
    while True:
      page = self._fs.call_s3('list_objects_v2', Bucket=bucket, Prefix=prefix, Delimiter='/',
                              **token)
      found |= {item['Key']: self._entry(item, 'Size') for item in page.get('Contents', [])}
      found |= dict.fromkeys(one['Prefix'] for one in page.get('CommonPrefixes', []))
      if not page.get('IsTruncated'):
        return found
      token = {'ContinuationToken': page['NextContinuationToken']}

  def stat(self, bucket, key):
    return self._entry(self._fs.call_s3('head_object', Bucket=bucket, Key=key), 'ContentLength')

  @staticmethod
  def _entry(item: dict[str, Any], size: str) -> Entry:
    return Entry(int(item[size]), item['LastModified'].timestamp(), item['ETag'].strip('"'))

  def read(self, bucket, key):
    out = io.BytesIO()
    self._get(bucket, key, out)
    return out.getvalue()

  def read_range(self, bucket, key, start, end, entry):
    out = io.BytesIO()
    self._get(bucket, key, out, entry, Range=f'bytes={start}-{end - 1}')
    return out.getvalue()

  def _get(self, bucket, key, out, entry=None, **more):
    from fsspec import asyn
    asyn.sync(self._fs.loop, self._copy, bucket, key, out, entry, more)

  async def _copy(self, bucket: str, key: str, out: BinaryIO, entry: Entry | None,
                  more: dict[str, str]) -> None:
    """Copy an object, or a range, to ``out``: of the version ``entry``, where that is given."""
    if entry is not None and entry.checksum:
      more = more | {'IfMatch': f'"{entry.checksum}"'}
    answer = await self._fs._call_s3('get_object', Bucket=bucket, Key=key, **more)
    sums = hashlib.md5(usedforsecurity=False)
    try:
      while data := await answer['Body'].read(_CHUNK):
        out.write(data)
        sums.update(data)
    finally:
      answer['Body'].close()
    etag = answer.get('ETag', '').strip('"')
    # The ETag is an MD5, unless the object was uploaded in parts or encrypted with a key.
    is_sum = _MD5.fullmatch(etag) and answer.get('ServerSideEncryption', 'AES256') == 'AES256' and (
        'SSECustomerAlgorithm' not in answer)
    if is_sum and 'Range' not in more and sums.hexdigest() != etag:
      raise Transient('what arrived has another MD5')

  def write(self, bucket, key, data, **condition):
    answer = self._fs.call_s3('put_object', Bucket=bucket, Key=key, Body=data, **condition)
    return Entry(len(data), time.time(), answer['ETag'].strip('"'))

  def create_condition(self):
    return {'IfNoneMatch': '*'}

  def same_condition(self, entry):
    return {'IfMatch': f'"{entry.checksum}"'}

  def remove(self, bucket, key):
    self._fs.call_s3('delete_object', Bucket=bucket, Key=key)

  def download(self, bucket, key, path, entry):
    with path.open('wb') as file:
      self._get(bucket, key, file, entry)

  def upload(self, bucket, key, path):
    self._fs.put_file(str(path), f'{bucket}/{key}', chunksize=_PART)

  def copy(self, bucket, key, other):
    self._fs.cp_file(f'{bucket}/{key}', f'{bucket}/{other}')


# -- errors ---------------------------------------------------------------------------------------

# Errors of botocore about what the user has set.
_SETTINGS = ('ConfigParseError', 'ConfigNotFound', 'EndpointResolutionError', 'InvalidConfigError',
             'InvalidRegionError', 'NoRegionError', 'UnknownRegionError',
             'InvalidEndpointConfigurationError')
_HELP = {
    'gs': 'run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS',
    's3': 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE',
}


@contextlib.contextmanager
def _translated(scheme: str):
  """Turns the exceptions of both libraries into the four of this module; bugs pass through.

  The texts of the libraries are not repeated: they may hold signed URLs and tokens.
  """
  try:
    yield
  except Exception as error:
    known = _translation(error, scheme)
    if known is error or known is None:
      raise
    raise known from None


def _translation(error: Exception, scheme: str) -> Exception | None:
  """The exception of this module for one of a library; None for bugs."""
  if isinstance(error, Missing | Exists | Denied | Transient | UserError):
    return error
  status = _status(error)
  if isinstance(error, FileNotFoundError) or status == 404:
    return Missing()
  if isinstance(error, FileExistsError) or status == 412:
    return Exists()
  if isinstance(error, PermissionError) or status in (401, 403):
    why = f'HTTP {status} {_code(error).strip(" ()")}'.strip() if status else 'refused'
    return Denied(f'permission denied ({why}); {_HELP[scheme]}, and give that account the right '
                  'to list, read, create and delete objects of the bucket')
  if _is_credentials(error):
    return Denied(f'no usable credentials; {_HELP[scheme]}')
  if status in _TRANSIENT:
    return Transient(f'the server answers HTTP {status}')
  if status >= 300:
    return Denied(f'the store answers HTTP {status}{_code(error)}; check the name of the bucket, '
                  'its region and the credentials')
  if (isinstance(error, ValueError) and str(error).startswith('Invalid endpoint')
      or type(error).__module__ == 'botocore.exceptions' and type(error).__name__ in _SETTINGS):
    text = ' '.join(str(error).split()).rstrip('.')  # names no secrets
    return Denied(f'{text}; check AWS_ENDPOINT_URL, AWS_REGION and the files of AWS')
  if isinstance(error, RecursionError):  # of botocore, which follows redirections
    return Denied('the store redirects again and again; check AWS_ENDPOINT_URL and AWS_REGION')
  if _is_broken(error):
    return Transient(f'no connection or no answer ({type(error).__name__})')
  return None


_TENSORSTORE = {  # words of TensorStore's status codes
    'denied': ('PERMISSION_DENIED', 'UNAUTHENTICATED'),
    'transient': ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED', 'ABORTED', 'INTERNAL:'),
    'missing': ('NOT_FOUND',),
}
_HTTP = re.compile(r"http_response_code='(\d+)'")  # in messages of TensorStore about S3
_NAME = re.compile(r'<Code>(\w{1,40})</Code>')


def kind(error: BaseException) -> str:
  """What an error of a library that reads and writes buckets by itself, such as Orbax, means:
  'missing', 'exists', 'denied', 'transient', or '' for an error of another kind."""
  for one in _causes(error):
    text = str(one)
    found = next((meaning for meaning, words in _TENSORSTORE.items()
                  if any(word in text for word in words)), '')
    status = _HTTP.search(text)
    if not found and status:  # such as 400 for credentials that have expired
      number = int(status[1])
      found = 'transient' if number in _TRANSIENT else 'missing' if number == 404 else 'denied'
    if found:
      return found
    known = _translation(one, 'gs') if isinstance(one, Exception) else None
    if isinstance(known, Missing | Exists | Denied | Transient):
      return type(known).__name__.lower()
  return ''


def explained(error: BaseException, what: str, doing: str) -> BaseException:
  """The error for a failed read or write by a library that uses buckets by itself; an error of
  another kind is returned as it is.

  Args:
    error: of Orbax, TensorStore or fsspec.
    what: was read or written.
    doing: 'read' or 'written'.
  """
  if isinstance(error, UserError | RetryableError):
    return error
  found = kind(error)
  if found == 'denied':
    name = next((f' ({named[1]})' for one in _causes(error) if (named := _NAME.search(str(one)))),
                '')
    return UserError(f'{what} could not be {doing}: permission denied{name}; give this account the '
                     'right to list, read, create and delete objects of the bucket.')
  if found == 'transient':
    return RetryableError(f'{what} could not be {doing}: the store does not answer, or with '
                          'errors; run the same command again.')
  if found == 'missing':
    return RetryableError(f'{what} could not be {doing}: an object or the bucket is missing; if '
                          'nobody removes it at this moment, the checkpoint is damaged.')
  return error


def _causes(error: BaseException | None):
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int:
  """The HTTP status of an exception or of one of its causes; 0 if there is none."""
  for one in _causes(error):
    if type(one).__module__ == 'aiohttp.http_exceptions':
      continue  # an answer that ends too early has the code 400, which no server has sent
    for value in (getattr(one, 'code', None), getattr(one, 'status', None)):
      if isinstance(value, int | str) and str(value).isdigit():
        return int(value)
    response = getattr(one, 'response', None)
    if isinstance(response, dict):  # botocore
      return int(response.get('ResponseMetadata', {}).get('HTTPStatusCode', 0))
    if type(one) is OSError and str(one).startswith('Forbidden'):  # gcsfs
      return 403
    if type(one).__name__ == 'ProxyError':  # gcsfs, for 502
      return 502
  return 0


def _code(error: BaseException) -> str:
  """The name that S3 gives an error, such as ' (PermanentRedirect)'."""
  for one in _causes(error):
    response = getattr(one, 'response', None)
    if isinstance(response, dict):
      name = str(response.get('Error', {}).get('Code', ''))
      return f' ({name})' if name.isalnum() else ''
  return ''


def _is_credentials(error: BaseException) -> bool:
  names = {kind.__name__ for one in _causes(error) for kind in type(one).__mro__}
  return bool(names & {'NoCredentialsError', 'PartialCredentialsError', 'CredentialRetrievalError',
                       'ProfileNotFound', 'DefaultCredentialsError', 'RefreshError'})


def _is_broken(error: BaseException) -> bool:
  for one in _causes(error):
    names = {kind.__name__ for kind in type(one).__mro__}
    if names & {'ClientError', 'RequestException', 'HTTPClientError', 'TransportError',
                'ChecksumError', 'FlexibleChecksumError', 'FSTimeoutError', 'IncompleteReadError',
                'ResponseStreamingError', 'ResponseParserError', 'JSONDecodeError'}:
      return True
    if isinstance(one, (TimeoutError, ConnectionError, socket.gaierror)):
      return True
    if isinstance(one, OSError) and one.errno in _BROKEN:
      return True
  return False


# -- checksums ------------------------------------------------------------------------------------


def crc32c(path: pathlib.Path) -> str:
  """CRC32C of a file as GCS writes it: base64 of 4 bytes, most significant first."""
  import google_crc32c  # comes with gcsfs
  sum_ = google_crc32c.Checksum()
  with path.open('rb') as file:
    while data := file.read(2**20):
      sum_.update(data)
  return base64.b64encode(sum_.digest()).decode()


def etags(path: pathlib.Path) -> tuple[str, str]:
  """The ETags that S3 gives a file that was uploaded at once, or in parts of _PART bytes."""
  whole, parts = hashlib.md5(usedforsecurity=False), []
  with path.open('rb') as file:
    while data := file.read(_PART):
      whole.update(data)
      parts.append(hashlib.md5(data, usedforsecurity=False).digest())
  joined = hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()
  return whole.hexdigest(), f'{joined}-{len(parts)}'


def _crc32c_of(data: bytes) -> str:
  import google_crc32c
  return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def _seconds(text: str) -> float:
  """Seconds since the epoch of an RFC 3339 time."""
  if not text:
    return 0.0
  return datetime.datetime.fromisoformat(text).timestamp()
