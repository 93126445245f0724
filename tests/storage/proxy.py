"""An HTTP proxy before an object store that counts requests and disturbs them."""

from collections.abc import Callable, Iterator
import contextlib
import http.client
import http.server
import socket
import struct
import threading
import time
import urllib.parse

# What happens to a request: None = nothing, an HTTP status, or one with a body, 'reset' before it
# is forwarded, 'lost' after it, 'cut' in the middle of the answer's body, 'wrong' for a changed
# last byte of it, or seconds of silence before it is forwarded.
Disturbance = int | tuple[int, bytes] | str | float | None
WRITES = ('POST', 'PUT', 'DELETE', 'PATCH')


class Proxy:
  """Forwards to a server. ``disturb(method, path)`` decides what happens to each request, and
  ``after(method, path)`` is called when a request that writes was answered."""

  def __init__(self, address: str):
    self._target = urllib.parse.urlparse(address)
    self.disturb: Callable[[str, str], Disturbance] = lambda method, path: None
    self.after: Callable[[str, str], None] = lambda method, path: None
    self._writing = threading.Lock()
    self.requests: list[tuple[str, str]] = []
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
    self._server.daemon_threads = True
    self._server.handle_error = lambda request, client: None  # a client that was killed
    self.address = f'http://127.0.0.1:{self._server.server_address[1]}'
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
    self._thread.start()

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()

  @contextlib.contextmanager
  def disturbed(self, disturb: Callable[[str, str], Disturbance]) -> Iterator[None]:
    before, self.disturb = self.disturb, disturb
    try:
      yield
    finally:
      self.disturb = before

  def _handler(proxy):
    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def log_message(self, *unused):
        pass

      def _forward(self):
        body = self._body()
        proxy.requests.append((self.command, self.path))
        what = proxy.disturb(self.command, self.path)
        if what == 'reset':
          self._reset()
          return
        if isinstance(what, int | tuple):
          status, text = what if isinstance(what, tuple) else (what, b'disturbed')
          self._answer(status, {'Content-Type': 'text/plain'}, text)
          return
        if isinstance(what, float):
          time.sleep(what)
        target = http.client.HTTPConnection(proxy._target.hostname, proxy._target.port, timeout=60)
        headers = {key: value for key, value in self.headers.items()
                   if key.lower() not in ('transfer-encoding', 'connection', 'expect')}
        if body:
          headers['Content-Length'] = str(len(body))
        # Writes one after the other, so that ``after`` sees what each has done.
        with proxy._writing if self.command in WRITES else contextlib.nullcontext():
          target.request(self.command, self.path, body or None, headers)
          answer = target.getresponse()
          data = answer.read()
          if self.command in WRITES:
            proxy.after(self.command, self.path)
        target.close()
        if what == 'lost':
          self._reset()
          return
        if what == 'wrong' and data and answer.status < 300:
          data = data[:-1] + bytes([data[-1] ^ 1])
        whole = len(data) // 2 if what == 'cut' else len(data)
        self._answer(answer.status, dict(answer.getheaders()), data, whole)
        if what == 'cut':
          with contextlib.suppress(OSError):
            self.wfile.flush()
            self._reset()

      def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

      def _body(self) -> bytes:
        if self.headers.get('Expect', '').lower() == '100-continue':
          pass  # BaseHTTPRequestHandler has answered
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
          parts = []
          while size := int(self.rfile.readline().split(b';')[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
          self.rfile.readline()
          return b''.join(parts)
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

      def _answer(self, status, headers, data, sent=None):
        with contextlib.suppress(ConnectionError):
          self.send_response_only(status)
          for key, value in headers.items():
            if key.lower() not in ('transfer-encoding', 'connection', 'content-length'):
              self.send_header(key, value)
          if self.command == 'HEAD':
            self.send_header('Content-Length', headers.get('Content-Length', '0'))
          else:
            self.send_header('Content-Length', str(len(data)))
          self.end_headers()
          if self.command != 'HEAD':
            self.wfile.write(data[:sent])

      do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _forward
    return Handler
