"""Requests for profiles of a live run, and the answers: small files in WORKDIR/profile.

  request.json                              one request at a time, made by `ttt-jax profile`
  answer.K.json                             what process K makes of it
  plugins/profile/DATE/HOST.xplane.pb       traces, where TensorBoard's plug-in and xprof look
  memory/DATE/HOST.memory.pb.gz             memory profiles, in the format of pprof

Files pass through a shared disk, so no port is open, and every file appears in one piece. DATE is
the same for all processes of a request; HOST ends with -pK where a run has several processes.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import time
from typing import Annotated, Any

from ttt_jax.errors import UserError
from ttt_jax.storage import files, mirror, remote, schema

FOLDER = 'profile'
REQUEST = 'request.json'
TRACE, MEMORY = 'trace', 'memory'           # kinds
RECORDING, WRITING, DONE, FAILED = 'recording', 'writing', 'done', 'failed'
ALL = -1             # processes: all of them
SECONDS = 600.0      # longest trace; one of minutes is too large to be opened
_DATE = '%Y_%m_%d_%H_%M_%S'
_Time = Annotated[float, schema.Range(0, 1e11)]  # seconds since the epoch


class RequestFile(schema.Kind):
  """request.json."""
  id: schema.Name
  kind: str
  process: Annotated[int, schema.Range(-1, 2**31 - 1)]
  seconds: Annotated[float, schema.Range(0, SECONDS)]
  time: _Time
  expires: _Time
  date: schema.Name


class AnswerFile(schema.Kind):
  """answer.K.json."""
  id: str
  process: schema.Count
  host: str
  state: str
  file: str
  bytes: schema.Count
  error: str


@dataclasses.dataclass(frozen=True)
class Request:
  """What `ttt-jax profile` asks for.

  Attributes:
    id: tells requests apart.
    kind: TRACE or MEMORY.
    process: index of the process that answers, or ALL.
    seconds: length of a trace.
    time, expires: when it was made and until when it may be answered, seconds since the epoch.
    date: name of the folder of its files.
  """
  id: str
  kind: str
  process: int
  seconds: float
  time: float
  expires: float
  date: str


@dataclasses.dataclass(frozen=True)
class Answer:
  """How far one process is with a request.

  Attributes:
    id: of the request.
    process, host: who answers.
    state: RECORDING, WRITING, DONE or FAILED.
    file: of the profile, relative to WORKDIR/profile; '' before DONE.
    bytes: its size.
    error: a sentence, if the state is FAILED.
  """
  id: str
  process: int
  host: str
  state: str
  file: str = ''
  bytes: int = 0
  error: str = ''


def folder(workdir: str | os.PathLike) -> pathlib.Path:
  """WORKDIR/profile."""
  return pathlib.Path(workdir) / FOLDER


def date(now: float) -> str:
  """The name of the folder of the profiles that are begun at ``now``; in UTC, since the hosts of a
  run may be set to different time zones."""
  return time.strftime(_DATE, time.gmtime(now))


def newest(workdir: str | os.PathLike) -> pathlib.Path | None:
  """The folder of the newest trace; None if there is none."""
  folders = (folder(workdir) / 'plugins' / 'profile').glob('*/')
  return max((one for one in folders if any(one.glob('*.xplane.pb'))),
             key=lambda one: one.name, default=None)


def viewer(workdir: str | os.PathLike) -> str:
  """The command that shows the traces of a run."""
  return f'xprof --logdir {shlex.quote(mirror.named(folder(workdir)))} --port 8791'


def read_request(workdir: str | os.PathLike) -> Request | None:
  """The request that is there; None if there is none.

  Raises:
    UserError: it is damaged.
  """
  found = _read(workdir, REQUEST, RequestFile)
  return _made(Request, found) if found else None


def version(workdir: str | os.PathLike) -> Any:
  """Differs between two requests, and is cheap to ask for; None if there is none."""
  url = mirror.url_of(workdir)
  if url is not None:
    return remote.stat(_url(url, REQUEST))
  try:
    found = (folder(workdir) / REQUEST).stat()
  except OSError:
    return None
  return found.st_mtime_ns, found.st_size, found.st_ino


def write_request(workdir: str | os.PathLike, request: Request) -> bool:
  """Make a request; False if another one is there.

  Raises:
    UserError: it cannot be written.
  """
  url = mirror.url_of(workdir)
  if url is not None:
    return remote.create(_url(url, REQUEST), _text(request).encode())
  path = folder(workdir) / REQUEST
  with files.writing(path):
    files.make_folder(path.parent)
    partial = path.with_name(f'.{REQUEST}.{request.id}.partial')
    partial.write_text(_text(request), encoding='utf-8')
    try:
      os.link(partial, path)  # fails if there is one, and shows it complete if not
    except FileExistsError:
      return False
    finally:
      partial.unlink()
  return True


def clear(workdir: str | os.PathLike) -> None:
  """Remove the request that is there."""
  url = mirror.url_of(workdir)
  if url is not None:
    return remote.remove(_url(url, REQUEST))
  path = folder(workdir) / REQUEST
  with files.writing(path):
    path.unlink(missing_ok=True)


def remove_request(workdir: str | os.PathLike, request: Request) -> None:
  """Remove a request, unless another one has taken its place."""
  try:
    found = read_request(workdir)
  except UserError:
    return
  if found is not None and found.id == request.id:
    clear(workdir)


def answer_name(process: int) -> str:
  """The file of a process in WORKDIR/profile."""
  return f'answer.{process}.json'


def read_answer(workdir: str | os.PathLike, process: int, request: Request) -> Answer | None:
  """What a process has answered to a request; None if it has not yet."""
  found = _read(workdir, answer_name(process), AnswerFile)
  return _made(Answer, found) if found and found['id'] == request.id else None


def write_answer(workdir: str | os.PathLike, answer: Answer) -> None:
  """Replace the answer of a process.

  Raises:
    UserError: it cannot be written.
  """
  url, name = mirror.url_of(workdir), answer_name(answer.process)
  if url is not None:
    remote.write_bytes(_url(url, name), _text(answer).encode())
    return
  path = folder(workdir) / name
  with files.writing(path):
    files.make_folder(path.parent)
  files.write_text(path, _text(answer))


def publish(workdir: str | os.PathLike, path: pathlib.Path) -> None:
  """Copy a profile to the bucket of a workdir that is in one."""
  url = mirror.url_of(workdir)
  if url is not None:
    remote.upload(path, _url(url, path.relative_to(folder(workdir)).as_posix()))


def _url(workdir: str, name: str) -> str:
  return remote.join(workdir, FOLDER, *name.split('/'))


def _read(workdir: str | os.PathLike, name: str, kind: type) -> dict[str, Any]:
  """A small file of the folder, as in the bucket where the workdir is in one; {} if it is missing.
  The local copy of another process is as old as its last look there."""
  url = mirror.url_of(workdir)
  if url is None:
    return schema.read(folder(workdir) / name, kind, 'remove it', optional=True)
  where = _url(url, name)
  if not remote.exists(where):
    return {}
  values = schema.parse(remote.read_bytes(where), where, 'remove it')
  schema.check(values, kind, where, 'remove it')
  return values


def _text(value: Any) -> str:
  return json.dumps(dataclasses.asdict(value)) + '\n'


def _made(kind: Any, values: dict[str, Any]) -> Any:
  return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
