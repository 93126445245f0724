"""Chromium without a window, driven over its DevTools protocol; for the page's tests and pictures.

  with Browser(microphone='question.wav') as browser:
    browser.open('http://127.0.0.1:8000')
    browser.wait('document.querySelector("#connection").dataset.state === "on"')
    browser.picture('page.png', 1000, 700)
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from typing import Any
import urllib.request

from websockets.sync.client import connect

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


def program() -> str | None:
  """Chromium's path; None if it is not installed. CHROMIUM names another one."""
  named = os.environ.get('CHROMIUM')
  return shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
  """One page in a browser of its own.

  Attributes:
    problems: console errors, exceptions, and refusals of the content security policy so far.
  """

  def __init__(self, microphone: str | os.PathLike | None = None, patience: float = 60.0):
    """
    Args:
      microphone: a WAV file that the fake microphone plays, once; None: its own beeps.
      patience: limit of ``wait`` and of starting [s].
    """
    self._patience, self._count = patience, 0
    self.problems: list[str] = []
    self._folder = tempfile.mkdtemp(prefix='browser-')
    path = program()
    assert path is not None, 'Chromium is not installed'
    flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
             '--no-first-run', '--disable-extensions', '--disable-background-networking',
             '--disable-component-update', '--disable-sync', '--mute-audio', '--hide-scrollbars',
             '--autoplay-policy=no-user-gesture-required', '--remote-debugging-port=0',
             '--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream',
             f'--user-data-dir={self._folder}']
    if microphone is not None:
      flags.append(f'--use-file-for-fake-audio-capture={pathlib.Path(microphone).resolve()}%noloop')
    self._process = subprocess.Popen([path, *flags, 'about:blank'], stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL)
    try:
      port = self._until(self._port, 'Chromium does not start')
      self._socket = connect(self._until(lambda: self._target(port), 'Chromium has no page'),
                             max_size=2**27)
      for domain in ('Page', 'Runtime', 'Log'):
        self.call(f'{domain}.enable')
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> 'Browser':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    with contextlib.suppress(Exception):
      self._socket.close()
    self._process.terminate()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    shutil.rmtree(self._folder, ignore_errors=True)

  def _port(self) -> str | None:
    with contextlib.suppress(OSError, IndexError):
      return (pathlib.Path(self._folder) / 'DevToolsActivePort').read_text().split('\n')[0]

  def _target(self, port: str) -> str | None:
    with contextlib.suppress(OSError), urllib.request.urlopen(
        f'http://127.0.0.1:{port}/json', timeout=5) as found:
      pages = [one for one in json.load(found) if one['type'] == 'page']
      return pages[0]['webSocketDebuggerUrl'] if pages else None

  def _until(self, found, why: str) -> Any:
    end = time.monotonic() + self._patience
    while not (value := found()):
      assert time.monotonic() < end and self._process.poll() is None, why
      time.sleep(0.05)
    return value

  # -- commands ------------------------------------------------------------------------------

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """A command of the protocol; returns its result."""
    self._count += 1
    self._socket.send(json.dumps({'id': self._count, 'method': method, 'params': params}))
    while True:
      answer = json.loads(self._socket.recv(self._patience))
      if answer.get('id') == self._count:
        assert 'error' not in answer, f'{method}: {answer}'
        return answer['result']
      self._note(answer)

  def _note(self, event: dict[str, Any]) -> None:
    kind, params = event.get('method'), event.get('params', {})
    if kind == 'Runtime.exceptionThrown':
      details = params['exceptionDetails']
      self.problems.append(details.get('exception', {}).get('description', details['text']))
    elif kind == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
      self.problems.append(params['entry']['text'])
    elif kind == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning'):
      self.problems.append(str([one.get('value') for one in params['args']]))

  def open(self, address: str) -> None:
    self.call('Page.navigate', url=address)
    self.wait('document.readyState === "complete" && location.href !== "about:blank"')

  def run(self, script: str) -> Any:
    """The value of an expression of JavaScript, which may be a promise."""
    found = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True,
                      userGesture=True)
    assert 'exceptionDetails' not in found, found['exceptionDetails']
    return found['result'].get('value')

  def wait(self, condition: str, patience: float | None = None) -> None:
    """Until an expression is true in the sense of JavaScript, such as an element that exists."""
    end = time.monotonic() + (patience or self._patience)
    while not self.run(f'Boolean({condition})'):
      assert time.monotonic() < end, (condition, self.problems)
      time.sleep(0.05)

  def key(self, name: str, down: bool, code: int = 0, text: str = '') -> None:
    """Press or release a key, such as 'Space', 'Tab', 'Enter'."""
    self.call('Input.dispatchKeyEvent', type='keyDown' if down else 'keyUp', code=name,
              key={'Space': ' '}.get(name, name), windowsVirtualKeyCode=code,
              **({'text': text} if text and down else {}))

  def size(self, width: int, height: int, dark: bool = False, scale: float = 1.0) -> None:
    self.call('Emulation.setDeviceMetricsOverride', width=width, height=height,
              deviceScaleFactor=scale, mobile=width < 600)
    self.call('Emulation.setEmulatedMedia', features=[
        {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])

  def picture(self, path: str | os.PathLike) -> None:
    """What is seen, as PNG."""
    found = self.call('Page.captureScreenshot', format='png')
    pathlib.Path(path).write_bytes(base64.b64decode(found['data']))
