"""Detects truncated audio files, which decoders read up to the end without an error.

  WAV   the header has the length, unless the file was written into a pipe
  FLAC  the decoder reports it
  OGG   the last page of a stream has a flag
  MP3   the first frame may hold the number of frames. Otherwise frames are counted here and the
        last must be complete; a file truncated between two frames is not detected
"""

import os

_SLACK = 2 * 1152  # samples; counts of encoders and decoders differ by up to this
_TAGS = (b'Xing', b'Info', b'VBRI')
_KBITS = {True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),   # MPEG 1
          False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}      # 2 and 2.5
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def missing(path: str | os.PathLike, samples: int, announced: int) -> str:
  """The predicate of an error sentence about a truncated file; '' if the file is complete.

  Args:
    path: of a WAV, FLAC, OGG or MP3 that was decoded.
    samples: number of decoded samples.
    announced: number that the decoder read from the header.
  """
  with open(path, 'rb') as file:
    head = file.read(8)
    if head[:4] == b'RIFF':
      return _wav(int.from_bytes(head[4:], 'little'), os.path.getsize(path))
    if head[:4] == b'OggS':
      longest = 27 + 255 + 255 * 255  # a page
      file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * longest))
      return '' if _ogg_ends(file.read()) else (
          'is truncated: its last OGG page does not end the stream')
    if head[:3] != b'ID3' and head[:1] != b'\xff':
      return ''
    file.seek(0)
    return _mp3(file.read(), samples, announced)


def _wav(announced: int, size: int) -> str:
  # A program that writes into a pipe does not know the size; it writes one of these values.
  unknown = announced == 0 or announced >= 2**31 - 1
  if unknown or size >= announced:
    return ''
  return f'is truncated: it has {size:,} bytes, but its header announces {announced + 8:,}'


def _ogg_ends(tail: bytes) -> bool:
  """Whether the last page in the last bytes of an OGG file is complete and has the flag 'last'.

  A page (RFC 3533) is 'OggS', version 0, flags (4 = last), 20 bytes, n, n sizes, and as many
  bytes as the sizes sum to. Every stream of a chained file ends in such a page.
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


def _mp3(data: bytes, samples: int, announced: int) -> str:
  """As ``missing`` for an MP3; '' for other data."""
  at = 0
  if data[:3] == b'ID3' and len(data) > 10:  # an ID3v2 tag; its size has 7 bits per byte
    at = 10 + sum((byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0)))
  first = _frame(data[at:at + 4])
  if not first:
    return ''
  if not any(tag in data[at:at + 200] for tag in _TAGS):
    announced = 0
    while found := _frame(data[at:at + 4]):
      at += found[0]
      announced += found[1]
    if at > len(data):
      return 'is truncated: its last MP3 frame is incomplete'
  if samples < announced - _SLACK:
    return (f'gives {samples:,} samples of {announced:,}: it is truncated, or an MP3 of variable '
            'bit rate without a frame count')
  return ''


def _frame(header: bytes) -> tuple[int, int] | None:
  """(bytes, samples) of an MP3 frame (ISO 11172-3, 13818-3, layer III) from its first 4 bytes."""
  if len(header) < 4 or header[0] != 255 or header[1] & 0xe6 != 0xe2:  # sync, layer III
    return None
  version, bits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
  if version == 1 or bits in (0, 15) or rate == 3:
    return None
  samples = 1152 if version == 3 else 576
  size = samples // 8 * 1000 * _KBITS[version == 3][bits - 1] // _RATES[version][rate]
  return size + (header[2] >> 1 & 1), samples
