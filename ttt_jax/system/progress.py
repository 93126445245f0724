"""Progress of long work: a bar on a terminal, a line every ten seconds in a log.

  with Progress(1000, 'train') as progress:
    for step in range(1000):
      ...
      progress.update(1, loss=2.31)
"""

import sys
import time
from typing import Any, TextIO

LOG_EVERY = 10.0  # seconds between lines in a log
RATE_WINDOW = 60.0  # seconds that the displayed rate is averaged over


class Progress:
  """Shows how much of ``total`` is done, the rate, the time left and the latest metrics."""

  def __init__(self, total: int, label: str, *, done: int = 0, unit: str = '',
               stream: TextIO | None = None, shown: bool = True):
    """Start the clock.

    Args:
      total: units of work; 0 if unknown.
      label: one or two words at the start of the bar or the line.
      done: units done by an earlier run; they do not count towards the rate.
      unit: name of the units, for the rate: 'steps' shows '3.1 steps/s'.
      stream: where to write; standard error if None. A terminal that can redraw lines shows
        a bar.
      shown: False writes nothing: for all processes of a run but one.
    """
    self.total, self.label, self.done, self.unit = total, label, done, unit
    self.metrics: dict[str, Any] = {}
    self.closed = False
    self._shown = shown
    self._last_line: Any = None  # (done, metrics) of the last line in a log
    self._stream = stream or sys.stderr
    self._started = self._logged = time.monotonic()
    self._marks: list[tuple[float, int]] = []  # (time, done) at updates, at most RATE_WINDOW old
    self._bar = self._make_bar() if shown and self._stream.isatty() else None

  def _make_bar(self):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=self._stream)
    if console.is_dumb_terminal:  # it cannot redraw a line
      return None
    self._bar_width = 24 if console.width >= 100 else 10
    bar = RichProgress(
        TextColumn('{task.description}'), BarColumn(self._bar_width), MofNCompleteColumn(),
        TextColumn('{task.fields[tail]}', style='dim'), console=console)
    self._task = bar.add_task(self.label, total=self.total or None, completed=self.done, tail='')
    bar.start()
    return bar

  def update(self, n: int = 1, **metrics: Any) -> None:
    """Add ``n`` units; ``metrics`` (name -> number or text) replace older ones.

    Where a terminal has no room for all metrics, the last ones are left out.
    """
    self.done += n
    self.metrics.update(metrics)
    now = time.monotonic()
    if not self._marks:
      if n:  # the rate starts after the first unit, which often includes compilation
        self._marks.append((now, self.done))
    elif now - self._marks[-1][0] >= 1:
      self._marks.append((now, self.done))
      while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW:
        self._marks.pop(0)
    if self._bar:
      self._bar.update(self._task, completed=self.done, tail=self._tail(now, self._room()))
    elif now - self._logged >= LOG_EVERY:
      self._log(now)

  def say(self, sentence: str) -> None:
    """Write a message above the bar, or as a line of the log."""
    if self._bar:
      self._bar.console.print(sentence, markup=False, highlight=False)
    elif self._shown:
      print(f'{_now()}  {self.label}: {sentence}', file=self._stream, flush=True)

  def close(self) -> None:
    """Write the final state; call it also if the work stops early."""
    self.closed = True
    now = time.monotonic()
    if self._bar:
      self._bar.update(self._task, completed=self.done, tail=self._tail(now, self._room()))
      self._bar.stop()
      self._bar = None
    elif self._last_line != (self.done, self.metrics):  # unless that line was just written
      self._log(now)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  # -- text ----------------------------------------------------------------------
  def _rate(self, now: float) -> float:
    since, done = self._marks[0] if self._marks else (now, self.done)
    return (self.done - done) / max(now - since, 1e-9)

  def _room(self) -> int:
    """Columns that label, bar and count leave on the terminal."""
    count = len(f'{self.total or "?"}/{self.total or "?"}')
    assert self._bar is not None
    return self._bar.console.width - len(self.label) - self._bar_width - count - 3

  def _tail(self, now: float, room: int | None = None) -> str:
    rate = self._rate(now)
    parts = [f'{_number(rate)}{" " + self.unit if self.unit else ""}/s'] if rate else []
    if self.done >= self.total > 0 or self.closed:
      parts.append(f'in {duration(now - self._started)}')
    elif rate and self.total:
      parts.append(f'{duration((self.total - self.done) / rate)} left')
    tail = '  '.join(parts)
    for name, value in self.metrics.items():
      longer = f'{tail}  {name} {_number(value)}' if tail else f'{name} {_number(value)}'
      if room is not None and len(longer) > room:
        break
      tail = longer
    return tail

  def _log(self, now: float) -> None:
    if not self._shown:
      return
    self._logged = now
    self._last_line = (self.done, dict(self.metrics))
    share = f'/{self.total} ({100 * self.done // self.total} %)' if self.total else ''
    print(f'{_now()}  {self.label} {self.done}{share}  '
          f'{self._tail(now)}'.rstrip(), file=self._stream, flush=True)


class Stages:
  """Shows work in several stages: a callable (label, done, total), one Progress per stage.

  Use it as a context manager, which closes the last stage.
  """

  def __init__(self, stream: TextIO | None = None):
    self._stream = stream
    self._current: Progress | None = None

  def __call__(self, label: str, done: int, total: int) -> None:
    """``done`` of ``total`` (0 = unknown) units of stage ``label`` are done."""
    if self._current is None or self._current.label != label:
      self.close()
      self._current = Progress(total, label, stream=self._stream)
    self._current.total = total
    self._current.update(done - self._current.done)

  def close(self) -> None:
    if self._current:
      self._current.close()
      self._current = None

  def __enter__(self) -> 'Stages':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def duration(seconds: float) -> str:
  """Seconds for display: '8 s', '3 min 20 s' or '2 h 05 min'."""
  seconds = int(round(seconds))
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'


def _now() -> str:
  return time.strftime('%H:%M:%S')


def _number(value: Any) -> str:
  if isinstance(value, str):
    return value
  value = float(value)
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'
