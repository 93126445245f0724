"""`ttt-jax serve`: loads a model, compiles its programs, and serves it until it is told to stop."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute
import uvicorn

from ttt_jax.errors import UserError
from ttt_jax.serve import app as app_lib
from ttt_jax.serve.engine_loop import EngineLoop
from ttt_jax.serve.service import Service
from ttt_jax.system.progress import Progress

_LOG = logging.getLogger(__name__)
_MANY = re.compile(r'decode (?!1 )\d')  # names of programs that decode several requests


def bind(host: str, port: int) -> socket.socket:
  """A socket at an address, not listening yet: its port is taken, and connections are refused.

  Raises:
    UserError: the address is in use or not of this machine.
  """
  try:
    family, kind, number, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
  except (socket.gaierror, UnicodeError) as error:
    raise UserError(f'--host {host!r} is not an address ({error}); use 127.0.0.1 for this machine '
                    'alone, 0.0.0.0 for all its networks.') from error
  found = socket.socket(family, kind, number)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind(address)
  except OSError as error:
    found.close()
    raise _taken(host, port, error) from error
  return found


def _taken(host: str, port: int, error: OSError) -> UserError:
  if error.errno == errno.EADDRINUSE:
    return UserError(f'port {port} of {host} is in use by another program; choose another one with '
                     '--port.')
  if error.errno == errno.EACCES:
    return UserError(f'port {port} needs special rights; choose one from 1024 on with --port.')
  return UserError(f'cannot listen at {host} port {port}: {error.strerror or error}.')


def warm_up(loop: EngineLoop) -> None:
  """Compile every program of the engine that is not stored, and read those that one request needs
  alone; the others are read while the server answers."""
  began = time.monotonic()
  programs = loop.engine.programs()
  # Those that decode several requests together come last.
  programs.sort(key=lambda program: _MANY.match(program[0]) is not None)
  store = loop.engine.store
  assert store is not None, 'an engine that is not long-lived'
  reading = store.read(programs)
  later = {name for name in reading if _MANY.match(name)}
  with Progress(len(programs), 'warm-up', unit='programs') as progress:
    for name, make in programs:
      if name in reading:
        if name not in later:
          store.get(name)
      else:
        make()
      progress.update(1, program=name)
  loop.metrics.programs.set(len(programs))
  _LOG.info('warm-up: %d programs in %.1f s%s.', len(programs), time.monotonic() - began,
            f'; {len(later)} of them are still being read' if later else '')


class Server(uvicorn.Server):
  """uvicorn that finishes what is open when it is told to stop.

  Attributes:
    signal: that stopped it, or None.
  """

  def __init__(self, app: Starlette, service: Service):
    super().__init__(uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan='on',
        timeout_keep_alive=30, timeout_graceful_shutdown=5,
        ws_max_size=int(service.config.max_body * 2**20), h11_max_incomplete_event_size=2**16))
    self._service = service
    self.signal: int | None = None

  @contextlib.contextmanager
  def capture_signals(self):
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    # uvicorn raises the signal again after its shutdown; the exit code is ours to choose.
    before = {number: signal.signal(number, self._stop) for number in (
        signal.SIGINT, signal.SIGTERM)}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _stop(self, number: int, frame) -> None:
    if self.signal is not None:
      self.force_exit = True
    self.signal, self.should_exit = number, True

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    seconds = self._service.config.shutdown
    _LOG.info('stopping: open requests have %g s.', seconds)
    for server in self.servers:
      server.close()
    for one in sockets or ():
      one.close()
    done = asyncio.ensure_future(self._service.loop.drain(seconds))
    while not done.done() and not self.force_exit:
      await asyncio.wait({done}, timeout=0.1)
    if not done.done() or not done.result():
      _LOG.warning('stopping: requests that were still open are cut off.')
      done.cancel()
      await self._service.loop.stop()
    await super().shutdown(sockets)


def run(service: Service, listener: socket.socket, key: str = '', origins: Collection[str] = (),
        routes: Sequence[BaseRoute] = ()) -> int | None:
  """Serve until a signal; returns its number. The engine's programs should be warm.

  Args:
    service: the model and its limits.
    listener: as ``bind`` made it.
    key, origins, routes: as for app.make.

  Raises:
    UserError: another program listens at the address by now.
  """
  app: Starlette = app_lib.make(service, key, origins, routes)
  host, port = listener.getsockname()[:2]
  try:
    listener.listen(2048)
  except OSError as error:
    raise _taken(host, port, error) from error
  server = Server(app, service)
  shown = f'[{host}]' if ':' in host else host
  print(f'serving {service.served.name} at http://{shown}:{port} (Ctrl-C stops it)', flush=True)
  asyncio.run(server.serve(sockets=[listener]))
  sys.stdout.flush()
  return server.signal


def read_key(path: str | os.PathLike) -> str:
  """The API key in a file: its first line.

  Raises:
    UserError: no such file, or an empty one.
  """
  try:
    with open(path, encoding='utf-8') as file:
      key = file.readline().strip()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'--api-key-file {path} cannot be read: '
                    f'{getattr(error, "strerror", None) or error}.') from error
  if not key:
    raise UserError(f'--api-key-file {path} is empty; its first line must be the key.')
  return key
