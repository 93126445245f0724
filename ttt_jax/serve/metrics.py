"""Counters and histograms of a server, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ttt_jax.serve.sound_out import RATE

_SECONDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 1.5, 2, 3, 5, 10, 30)
_FACTORS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 4, 8)


class Metrics:
  """The metrics of one server; every metric's name begins with ``ttt_``."""

  def __init__(self):
    self.registry = CollectorRegistry()
    make = lambda kind, name, text, *labels, **rest: kind(
        f'ttt_{name}', text, labels, registry=self.registry, **rest)
    self._requests = make(Counter, 'requests', 'Requests by HTTP path and status', 'path', 'status')
    self._generations = make(Counter, 'generations', 'Answers by how they ended: stop, length, '
                             'cancelled', 'outcome')
    self._tokens = make(Counter, 'tokens', 'Tokens by kind: prompt, text, audio', 'kind')
    self._in_slots = make(Gauge, 'slots_used', 'Requests that are decoded')
    self._waiting = make(Gauge, 'queue', 'Requests that wait for a slot')
    self._open = make(Gauge, 'open_requests', 'Requests whose answer is not complete')
    self.programs = make(Gauge, 'programs_compiled', 'Programs compiled or loaded before the port '
                         'was opened')
    self._first = make(Histogram, 'first_audio_seconds', 'Time from a request to its first samples',
                       buckets=_SECONDS)
    self._factor = make(Histogram, 'real_time_factor', 'Time of an answer over the duration of its '
                        'sound', buckets=_FACTORS)
    self._seconds = make(Histogram, 'answer_seconds', 'Time from a request to the end of its '
                         'answer', buckets=_SECONDS)

  def request(self, path: str, status: int) -> None:
    self._requests.labels(path, str(status)).inc()

  def opened(self, count: int) -> None:
    self._open.set(count)

  def closed(self, outcome: str, count: int) -> None:
    self._generations.labels(outcome).inc()
    self._open.set(count)

  def slots(self, active: int, waiting: int) -> None:
    self._in_slots.set(active)
    self._waiting.set(waiting)

  def first_audio(self, seconds: float) -> None:
    self._first.observe(seconds)

  def answered(self, prompt: int, text: int, audio: int, seconds: float, samples: int) -> None:
    """Count an answer; ``samples`` of its sound at sound_out.RATE."""
    for kind, count in (('prompt', prompt), ('text', text), ('audio', audio)):
      self._tokens.labels(kind).inc(count)
    self._seconds.observe(seconds)
    if samples:
      self._factor.observe(seconds / (samples / RATE))

  def text(self) -> bytes:
    return generate_latest(self.registry)
