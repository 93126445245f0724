"""Paths that users write: ``~`` is expanded; names that the libraries which write files cannot take
are rejected, and addresses of the network, but for those of buckets where they are taken."""

import os
import re

from ttt_jax.errors import UserError
from ttt_jax.storage import remote

_BUCKET = re.compile(r'(gs|gcs|s3|s3a|s3n)://', re.I)
# 'gs:/b/x', 'gs:b/x', 'gs//b/x', ' gs://b/x': would be folders on a disk.
_MISWRITTEN = re.compile(r'\s*(gs|gcs|s3|s3a|s3n)(?::/?|//)(?!/)(.*)|\s+(gs|s3)://(.*)',
                         re.I | re.S)
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+://')
_REMEDY = {
    'gs': 'copy it, or mount the bucket (gcsfuse, Filestore) and name the mount',
    's3': 'copy it, or mount the bucket (s3fs, Mountpoint for S3) and name the mount',
    'hf': 'download it (`hf download`) and name the folder',
    'file': 'leave file:// out',
}
_DOWNLOAD = 'download it and name the copy on a disk'


def local(path: str, what: str, bucket: bool = False) -> str:
  """``path`` with ``~`` expanded.

  Args:
    path: of a file or folder that the user named; '' stays ''.
    what: how the user named it, for the message: a flag or a config key.
    bucket: whether it may be a URL of a bucket, gs://BUCKET/NAME or s3://BUCKET/NAME.

  Raises:
    UserError: it is an address such as hf://NAME, which no command reads, nearly a URL of a bucket,
      or has a NUL character or bytes that are not UTF-8.
  """
  if bucket and _BUCKET.match(path):
    return remote.check(path, what, connected=False)
  if found := _MISWRITTEN.fullmatch(path):
    scheme = 'gs' if (found[1] or found[3]).lower() in ('gs', 'gcs') else 's3'
    url = f'{scheme}://{found[2] or found[4] or "BUCKET/NAME"}'
    raise UserError(f'{what} is {remote.shown(path)!r}, which is no URL of a bucket; '
                    + (f'write {remote.shown(url)}, or' if bucket else
                       'name a path on a disk, and write')
                    + ' ./ before the name of a folder on a disk.')
  if _ADDRESS.match(path):
    scheme = path.partition(':')[0].lower()
    raise UserError(f'{what} is {remote.shown(path)}, which is not a path on a disk; '
                    f'{_REMEDY.get(scheme, _DOWNLOAD)}.')
  path = os.path.expanduser(path)
  try:
    encoded = path.encode()
  except UnicodeEncodeError as error:  # os.fsdecode gives such bytes as surrogates
    raise UserError(f'{what} is {path!r}, whose name is not UTF-8; rename it.') from error
  if b'\0' in encoded:
    raise UserError(f'{what} is {path!r}; it must have no NUL character.')
  return path
