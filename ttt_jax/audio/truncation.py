"""Is a recording all there? Decoders read what there is of a file that was cut off, and stop.

  WAV   its header says how long it is, unless it was written into a pipe
  FLAC  the decoder itself objects
  OGG   the last page of a stream is marked as the last
  MP3   its first frame may count the frames; without that they are counted here, and the
        last must be whole: a file cut between two frames cannot be told from a shorter one
"""

import os

_SLACK = 2 * 1152  # samples by which counts of encoders and decoders differ
_TAGS = (b'Xing', b'Info', b'VBRI')
_KBITS = {True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),   # MPEG 1
          False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}      # 2 and 2.5
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def missing(path: str | os.PathLike, samples: int, promised: int) -> str:
  """What a file lacks, as the end of a sentence that its name opens; '' if it is whole.

  Args:
    path: of a WAV, FLAC, OGG or MP3 that could be decoded.
    samples: how many that gave.
    promised: how many the decoder expected after reading the header.
  """
  with open(path, 'rb') as file:
    head = file.read(8)
    if head[:4] == b'RIFF':
      return _wav(int.from_bytes(head[4:], 'little'), os.path.getsize(path))
    if head[:4] == b'OggS':
      longest = 27 + 255 + 255 * 255  # a page
      file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * longest))
      return '' if _ogg_ends(file.read()) else (
          'is cut off: its last OGG page does not end the stream')
    if head[:3] != b'ID3' and head[:1] != b'\xff':
      return ''
    file.seek(0)
    return _mp3(file.read(), samples, promised)


def _wav(said: int, size: int) -> str:
  # A program that writes into a pipe cannot know the size, and says so in one of these ways.
  unknown = said == 0 or said >= 2**31 - 1
  if unknown or size >= said:
    return ''
  return f'is cut off: it has {size:,} bytes, and its header promises {said + 8:,}'


def _ogg_ends(tail: bytes) -> bool:
  """Whether the last page in the last bytes of an OGG file is whole and marked as the last.

  A page (RFC 3533): 'OggS', version 0, flags (4 = last), 20 bytes, n, n sizes, and as many
  bytes as they add up to. Of chained streams each has a last page, and so the file has.
  """
  start = len(tail)
  while (start := tail.rfind(b'OggS', 0, start)) >= 0:
    header = tail[start:start + 27]
    if len(header) < 27:
      return False
    if header[4] == 0:
      sizes = tail[start + 27:start + 27 + header[26]]
      there = len(sizes) == header[26] and start + 27 + len(sizes) + sum(sizes) <= len(tail)
      return there and bool(header[5] & 4)
  return False


def _mp3(data: bytes, samples: int, promised: int) -> str:
  """Of an MP3; of anything else that a decoder took for audio, nothing can be said."""
  at = 0
  if data[:3] == b'ID3' and len(data) > 10:  # a tag before the sound; sizes of 7 bits a byte
    at = 10 + sum((byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0)))
  first = _frame(data[at:at + 4])
  if not first:
    return ''
  if not any(tag in data[at:at + 200] for tag in _TAGS):
    promised = 0
    while found := _frame(data[at:at + 4]):
      at += found[0]
      promised += found[1]
    if at > len(data):
      return 'is cut off: its last MP3 frame is not whole'
  if samples < promised - _SLACK:
    return (f'gives {samples:,} samples of {promised:,}: it is cut off, or an MP3 of varying rate '
            'that does not count its frames')
  return ''


def _frame(header: bytes) -> tuple[int, int] | None:
  """(bytes, samples) of an MP3 frame (ISO 11172-3, 13818-3, layer III) by its 4 first bytes."""
  if len(header) < 4 or header[0] != 255 or header[1] & 0xe6 != 0xe2:  # sync, layer III
    return None
  version, bits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
  if version == 1 or bits in (0, 15) or rate == 3:
    return None
  samples = 1152 if version == 3 else 576
  size = samples // 8 * 1000 * _KBITS[version == 3][bits - 1] // _RATES[version][rate]
  return size + (header[2] >> 1 & 1), samples
