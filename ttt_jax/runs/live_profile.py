"""`ttt-jax profile`: asks the processes of a live run for a profile, and waits for it.

The run may be on another machine: request and answers are files in its workdir (profile_files).
"""

from collections.abc import Callable, Mapping
import os
import pathlib
import time
from typing import Any
import uuid

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.runs import status, sweep
from ttt_jax.storage import mirror
from ttt_jax.train import profile_files, status_file
from ttt_jax.train.profile_files import Answer, Request

LIVE = 2.0      # seconds between two looks whether the run is alive
POLL = 0.2      # seconds between two looks at the answers
WRITING = 300.0  # seconds that writing a trace may take


def profile(workdir: str | os.PathLike, *, seconds: float = 5.0, process: int = 0,
            memory: bool = False, timeout: float = 60.0,
            say: Callable[[str], None] = lambda text: None) -> list[tuple[pathlib.Path, int]]:
  """Ask a live run for a profile.

  Args:
    workdir: of the run.
    seconds: length of the trace.
    process: index of the process that is asked; profile_files.ALL = every one.
    memory: a profile of the devices' memory at this moment, instead of a trace.
    timeout: seconds until every process must have begun.
    say: takes short texts about what is waited for.

  Returns:
    (file, bytes) for every process.

  Raises:
    UserError: there is no such run or process, or the run has ended; a profile could not be made.
    RetryableError: another profile is being taken, or no answer within ``timeout``.
  """
  workdir = pathlib.Path(workdir)
  processes = _processes(workdir, process)
  now = time.time()
  kind = profile_files.MEMORY if memory else profile_files.TRACE
  request = Request(uuid.uuid4().hex, kind, process, seconds, now, now + timeout,
                    profile_files.date(now))
  _send(workdir, request)
  try:
    return _wait(workdir, request, processes, timeout, say)
  finally:
    profile_files.remove_request(workdir, request)


def _processes(workdir: pathlib.Path, process: int) -> list[int]:
  """The processes that must answer.

  Raises:
    UserError: the run is not live, or has no such process.
  """
  if not workdir.is_dir():
    raise UserError(f'workdir {mirror.named(workdir)} does not exist; name the folder of a run.')
  if sweep.is_sweep(workdir):
    raise UserError(f'{mirror.named(workdir)} is a sweep; name the folder of one of its members.')
  fields = _status(workdir)
  if not fields:
    late = f' (or its run began in the last {mirror.EVERY:g} seconds)' if mirror.url_of(
        workdir) else ''  # status.json is copied that often
    raise UserError(f'{mirror.named(workdir)} has no status.json: nothing was trained there{late}; '
                    f'start `ttt-jax train --workdir {mirror.named(workdir)}` first.')
  _require_live(workdir, fields)
  count = fields.get('process_count') or 1
  if process >= count:
    raise UserError(f'--process is {process}, but the run has {count} process'
                    f'{"es, 0 to " + str(count - 1) if count > 1 else ", number 0"}.')
  return list(range(count)) if process == profile_files.ALL else [process]


def _status(workdir: pathlib.Path) -> dict[str, Any]:
  """The fields of status.json, as in the bucket where the workdir is in one."""
  if mirror.url_of(workdir) is not None:
    mirror.copied(mirror.named(workdir))
  return status_file.read(workdir)


def _require_live(workdir: pathlib.Path, fields: Mapping[str, Any]) -> None:
  state = fields.get('state')
  if state in status.ENDED:
    raise UserError(f'the run in {mirror.named(workdir)} is not live: it {_ENDS[state]} at step '
                    f'{fields.get("step") or 0:,}; profile one that trains.')
  if status.gone(fields):
    raise UserError(f'the run in {mirror.named(workdir)} is not live: its process '
                    f'{fields["pid"]} is gone; run the command of the run again to resume it.')


_ENDS = {'done': 'was done', 'failed': 'failed', 'preempted': 'was preempted',
         'interrupted': 'was interrupted'}


def _send(workdir: pathlib.Path, request: Request) -> None:
  if profile_files.write_request(workdir, request):
    return
  try:
    other = profile_files.read_request(workdir)
  except UserError:
    other = None  # damaged
  path = mirror.named(profile_files.folder(workdir) / profile_files.REQUEST)
  if other is not None and request.time < other.expires + other.seconds:
    raise RetryableError(f'another profile of {mirror.named(workdir)} is being taken: {path} '
                         f'was written {max(request.time - other.time, 0):.0f} s ago; try again '
                         'when it is done, or remove that file.')
  profile_files.clear(workdir)  # a command that was killed has left it
  if not profile_files.write_request(workdir, request):
    raise RetryableError(f'another profile of {mirror.named(workdir)} has just been asked for; '
                         'try again.')


def _wait(workdir: pathlib.Path, request: Request, processes: list[int], timeout: float,
          say: Callable[[str], None]) -> list[tuple[pathlib.Path, int]]:
  started = looked = time.monotonic()
  begun: dict[int, float] = {}  # process -> when it had begun
  answers: dict[int, Answer] = {}
  while True:
    for process in processes:
      answer = profile_files.read_answer(workdir, process, request)
      if answer is not None:
        begun.setdefault(process, time.monotonic())
        answers[process] = answer
    now = time.monotonic()
    silent = [process for process in processes if process not in answers]
    for answer in answers.values():
      if answer.state == profile_files.FAILED:
        raise UserError(f'process {answer.process} on {answer.host} could not make the profile: '
                        f'{answer.error}')
    if not silent and all(
        answer.state == profile_files.DONE for answer in answers.values()):
      return [(profile_files.folder(workdir) / answers[process].file, answers[process].bytes)
              for process in processes]
    if now - looked > LIVE:
      looked = now
      fields = _status(workdir)
      if silent or status.gone(fields):
        _require_live(workdir, fields)
    if silent and now - started > timeout:
      raise RetryableError(
          f'process {silent[0]} of the run in {mirror.named(workdir)} has not answered within '
          f'{timeout:g} s (--timeout); `ttt-jax status` shows whether it is alive; an '
          'older version of ttt-jax does not answer.')
    late = [process for process, when in begun.items()
            if answers[process].state != profile_files.DONE
            and now - when > request.seconds + WRITING]
    if late:
      raise RetryableError(f'process {late[0]} of the run in {mirror.named(workdir)} began the '
                           f'profile, but has not written it within {WRITING:.0f} s; see its log.')
    say(_what(request, processes, answers, begun, now, now - started))
    time.sleep(POLL)


def _what(request: Request, processes: list[int], answers: Mapping[int, Answer],
          begun: Mapping[int, float], now: float, waited: float) -> str:
  silent = [process for process in processes if process not in answers]
  if silent:
    return f'waiting for process {silent[0]}: {waited:.0f} s'
  recording = [begun[process] for process in processes
               if answers[process].state == profile_files.RECORDING]
  if recording:
    return f'recording: {min(now - min(recording), request.seconds):.0f} of {request.seconds:g} s'
  return f'writing: {now - max(begun.values()) - request.seconds:.0f} s' if (
      request.kind == profile_files.TRACE) else 'writing'
