"""Latency of a running server: from sending a request to its first PCM byte, and what follows.

  ttt-jax serve --workdir demo
  python -m benchmarks.serve --json serve.json                     # beside it
  python -m benchmarks.serve --url http://127.0.0.1:8000 --clients 1 8 --requests 40 --poisson 4

Clients ask /v1/audio/speech for PCM and read it as it comes, over plain sockets, so that the
clock starts before the request is sent and stops when the first sample is here. Closed loop: each
of N clients sends its next request when its answer is complete. Poisson: requests arrive at random
times at a given rate, whatever is open. For each case:

  first audio        percentiles [s]; 'server': the mean of the server's own histogram, in which the
                     clock starts when the request has arrived, for comparison
  real-time factor   time of a request over the duration of its sound
  underruns          answers in which a player that starts at the first byte runs out of samples,
                     and the longest pause that it makes [s]
  throughput         answers and seconds of sound per second; 'speed-up' over the first case
"""

import argparse
import asyncio
import dataclasses
import json
import os
import pathlib
import random
import re
import time
import urllib.parse
import urllib.request

PCM_RATE = 48_000  # bytes per second of the protocol's PCM: 24 kHz, 16 bits


@dataclasses.dataclass
class Answer:
  """What a client saw of one request; times in seconds since it was sent.

  Attributes:
    first, total: until the first and the last byte of sound.
    duration: of the sound.
    pause: longest pause of a player that starts at the first byte.
    status: of HTTP.
  """
  first: float
  total: float
  duration: float
  pause: float
  status: int


async def ask(url: urllib.parse.SplitResult, text: str, key: str) -> Answer:
  """Send one request and read its answer."""
  body = json.dumps({'input': text, 'voice': 'any', 'response_format': 'pcm'}).encode()
  head = (f'POST /v1/audio/speech HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n'
          f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n')
  head += f'Authorization: Bearer {key}\r\n' if key else ''
  began = time.perf_counter()
  reader, writer = await asyncio.open_connection(url.hostname, url.port or 80)
  try:
    writer.write(head.encode() + b'\r\n' + body)
    answer = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1')
    status = int(answer.split(' ', 2)[1])
    if status != 200:
      return Answer(0, time.perf_counter() - began, 0, 0, status)
    first, size, pause = 0.0, 0, 0.0
    while count := int(await reader.readline(), 16):
      await reader.readexactly(count + 2)
      now = time.perf_counter() - began
      first = first or now
      pause = max(pause, now - first - size / PCM_RATE)
      size += count
    return Answer(first, time.perf_counter() - began, size / PCM_RATE, pause, status)
  finally:
    writer.close()


async def closed_loop(url, texts: list[str], clients: int, key: str) -> list[Answer]:
  """All texts, by ``clients`` clients that each wait for their answer."""
  waiting, out = iter(texts), []

  async def client() -> None:
    for text in waiting:
      out.append(await ask(url, text, key))
  await asyncio.gather(*(client() for _ in range(clients)))
  return out


async def poisson(url, texts: list[str], rate: float, seed: int, key: str) -> list[Answer]:
  """All texts, ``rate`` of them arriving per second on average."""
  draw, tasks = random.Random(seed), []
  for text in texts:
    tasks.append(asyncio.ensure_future(ask(url, text, key)))
    await asyncio.sleep(draw.expovariate(rate))
  return list(await asyncio.gather(*tasks))


def server_first_audio(address: str, key: str) -> tuple[float, int]:
  """(sum, count) of the server's histogram of the time to the first samples."""
  request = urllib.request.Request(f'{address}/metrics')
  if key:
    request.add_header('Authorization', f'Bearer {key}')
  with urllib.request.urlopen(request, timeout=60) as found:
    text = found.read().decode()
  value = lambda name: float(re.search(rf'^ttt_first_audio_seconds_{name} (\S+)', text, re.M)[1])
  return value('sum'), int(value('count'))


def percentile(values: list[float], share: float) -> float:
  ordered = sorted(values)
  return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summary(answers: list[Answer], seconds: float, server: float) -> dict:
  """The figures of one case; see the module's docstring."""
  good = [answer for answer in answers if answer.duration]
  rtf = [answer.total / answer.duration for answer in good]
  late = [answer.pause for answer in good if answer.pause > 0]
  mean = sum(answer.first for answer in good) / max(1, len(good))
  return {
      'answers': len(good), 'without_sound': sum(a.status == 200 for a in answers) - len(good),
      'errors': sum(answer.status != 200 for answer in answers),
      'first_audio_p50': percentile([answer.first for answer in good], 0.5),
      'first_audio_p99': percentile([answer.first for answer in good], 0.99),
      'first_audio_mean': mean, 'first_audio_mean_of_server': server,
      'real_time_factor_p50': percentile(rtf, 0.5), 'real_time_factor_p99': percentile(rtf, 0.99),
      'underruns': len(late), 'longest_pause': max(late, default=0.0), 'seconds': seconds,
      'answers_per_second': len(good) / seconds,
      'sound_per_second': sum(answer.duration for answer in good) / seconds}


def sentences(count: int, seed: int, file: str | None) -> list[str]:
  """Texts to read aloud: lines of a file in turn, or strings of digits as the demo speaks them."""
  if file:
    lines = pathlib.Path(file).read_text(encoding='utf-8').split('\n')
    lines = [line for line in lines if line.strip()]
    return [lines[i % len(lines)] for i in range(count)]
  draw = random.Random(seed)
  return [' '.join(str(draw.randrange(10)) for _ in range(draw.randint(3, 6)))
          for _ in range(count)]


def line(name: str, found: dict, base: dict) -> str:
  speed_up = found['answers_per_second'] / (base['answers_per_second'] or 1)
  return (f'{name:<14}{found["first_audio_p50"]:8.3f}{found["first_audio_p99"]:8.3f}'
          f'{found["first_audio_mean"]:8.3f}{found["first_audio_mean_of_server"]:8.3f}'
          f'{found["real_time_factor_p50"]:8.3f}{found["underruns"]:7d}'
          f'{found["longest_pause"]:8.3f}{found["answers_per_second"]:9.2f}'
          f'{found["sound_per_second"]:8.2f}{speed_up:9.2f}{found["errors"]:8d}')


HEAD = (f'{"":<14}{"p50":>8}{"p99":>8}{"mean":>8}{"server":>8}{"RTF":>8}{"under":>7}{"pause":>8}'
        f'{"answ./s":>9}{"sound/s":>8}{"speed-up":>9}{"errors":>8}')


def measure(args: argparse.Namespace) -> dict[str, dict]:
  """All cases in turn; prints a line for each."""
  url = urllib.parse.urlsplit(args.url)
  key = pathlib.Path(args.api_key_file).read_text().split('\n')[0].strip() if (
      args.api_key_file) else ''
  cases = [(f'{n} clients', n, 0.0) for n in args.clients]
  cases += [(f'{rate:g} per second', 0, rate) for rate in args.poisson]
  texts = sentences(args.requests, args.seed, args.texts)
  asyncio.run(closed_loop(url, texts[:2], 1, key))  # connections, file caches
  results: dict[str, dict] = {}
  print(HEAD)
  for name, clients, rate in cases:
    before = server_first_audio(args.url, key)
    began = time.perf_counter()
    answers = asyncio.run(closed_loop(url, texts, clients, key) if clients else
                          poisson(url, texts, rate, args.seed, key))
    seconds = time.perf_counter() - began
    after = server_first_audio(args.url, key)
    server = (after[0] - before[0]) / max(1, after[1] - before[1])
    results[name] = summary(answers, seconds, server)
    print(line(name, results[name], next(iter(results.values()))), flush=True)
  return results


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--url', default='http://127.0.0.1:8000')
  parser.add_argument('--api-key-file')
  parser.add_argument('--clients', type=int, nargs='*', default=[1, 2, 4, 8, 16])
  parser.add_argument('--poisson', type=float, nargs='*', default=[2.0, 4.0], metavar='RATE')
  parser.add_argument('--requests', type=int, default=48, help='per case')
  parser.add_argument('--texts', metavar='FILE', help='a text per line (default: digits)')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--json', metavar='FILE')
  args = parser.parse_args(argv)
  load = os.getloadavg()[0]
  print(f'load of this machine before: {load:.1f} on {os.cpu_count()} cores')
  results = measure(args)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(
        {'load_before': load, 'requests': args.requests, 'cases': results}, indent=1) + '\n')


if __name__ == '__main__':
  main()
