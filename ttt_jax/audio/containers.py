"""The streams of an audio file, as libsndfile decodes them from their first to their last sample.

libsndfile trusts headers and stops at the end of the first stream. Programs that write into a pipe,
that are interrupted, or that join files leave headers that do not fit. The rules here:

  WAV   unknown length (0, at least 2 GiB minus 64 KiB, or more than there is by no more than the
        size of a header): all bytes up to the end are samples. Bytes behind the samples that are
        neither chunks nor zeros are samples too. A second RIFF file behind the first is a stream.
        Less than the header announces: truncated
  FLAC  a second fLaC header is a stream; the decoder reports what is truncated
  OGG   chained streams are separate streams; a stream without an end mark ends with its last page.
        An incomplete page: truncated. A missing page or a wrong checksum: damaged
  MP3   a second frame count (Xing, Info, VBRI), another rate or another number of channels starts a
        stream. A count that is too small, or missing, is replaced by the number of frames there.
        Fewer frames than announced, or an incomplete last frame without a count: truncated. A file
        without a count that is truncated between two frames is not detected
  AIFF, AU, W64   less than the header announces: truncated
"""

import re
import struct
from typing import BinaryIO, NamedTuple
import zlib

BIGGEST = 2**31  # bytes; larger files are read only where their headers need no repair
_PIPE = 0x7fff0000  # SoX, arecord, ffmpeg and others write a size from here on where they know none
_SLACK = 4 * 1152   # samples; delay and padding that a decoder of MP3 removes
_MOST = 10_000      # streams of a file, chunks of a WAV
_NOISE = 10**6      # places in an MP3 that look like a frame and are none
_TAIL = 1024        # bytes behind the samples that are a tag, rather than samples
_KBITS = {True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),   # MPEG 1
          False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}      # 2 and 2.5
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_FFMPEG = 'convert it, for example with `ffmpeg -i FILE FILE.flac`'
_MIRRORED = bytes(int(f'{b:08b}'[::-1], 2) for b in range(256))

# First bytes (at some offset) of files that are taken for sound but cannot be read.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (4, b'ftyp', f'is an MP4 or M4A file (AAC or ALAC); {_FFMPEG}'),
    (0, b'\x1aE\xdf\xa3', f'is a WebM or Matroska file; {_FFMPEG}'),
    (0, b'\x30\x26\xb2\x75', f'is a WMA file; {_FFMPEG}'),
    (0, b'#!AMR', f'is an AMR file; {_FFMPEG}'),
    (0, b'#!SILK', f'is a SILK file; {_FFMPEG}'),
    (0, b'\x02#!SILK', f'is a SILK file; {_FFMPEG}'),
    (0, b'ADIF', f'is an AAC file; {_FFMPEG}'),
    (0, b'MAC ', f'is a file of Monkey\'s Audio; {_FFMPEG}'),
    (0, b'wvpk', f'is a WavPack file; {_FFMPEG}'),
    (0, b'TTA1', f'is a file of True Audio; {_FFMPEG}'),
    (0, b'FLV\x01', f'is a Flash video; {_FFMPEG}'),
    (0, b'DSD ', f'is a DSD file; {_FFMPEG}'),
    (0, b'FRM8', f'is a DSD file; {_FFMPEG}'),
    (0, b'\x00\x00\x01\xba', f'is an MPEG video; {_FFMPEG}'),
    (8, b'AVI ', f'is an AVI video; {_FFMPEG}'),
    (0, b'ajkg', f'is compressed with Shorten; {_FFMPEG}'),
    (0, b'version https://git-lfs', 'is a pointer of Git LFS, not the recording; run `git '
                                    'lfs pull` where the data set was cloned'),
    (0, b'\x1f\x8b', 'is compressed with gzip; decompress it'),
    (0, b'\x28\xb5\x2f\xfd', 'is compressed with Zstandard; decompress it'),
    (0, b'BZh', 'is compressed with bzip2; decompress it'),
    (0, b'\xfd7zXZ', 'is compressed with xz; decompress it'),
    (0, b'PK\x03\x04', 'is a ZIP archive; unpack it'),
    (257, b'ustar', 'is a TAR archive; unpack it'),
    (0, b'\x93NUMPY', 'is a NumPy array; save it as a WAV'),
    (0, b'PAR1', 'is a Parquet file, not a recording'),
    (0, b'%PDF', 'is a PDF, not a recording'),
)
_TEXTS = (b'<!doctype', b'<html', b'<?xml')


class Stream(NamedTuple):
  """One stream of a file.

  Attributes:
    data: a complete file with this stream alone; None = the file itself.
    samples: the least number of samples that it must give per channel; 0 if unknown.
    seeks: whether the decoder finds a sample exactly.
  """
  data: bytes | None
  samples: int = 0
  seeks: bool = True


class Unusable(ValueError):
  """A file that is truncated or damaged; the message is the predicate of a sentence."""


def streams(file: BinaryIO, size: int) -> list[Stream]:
  """The streams of an open file, in order.

  Args:
    file: positioned anywhere.
    size: of the file in bytes.

  Raises:
    Unusable: a truncated or damaged file, or one in a format that is not read.
  """
  found = _streams(file, size)
  if len(found) > _MOST:
    raise Unusable(f'consists of {len(found):,} streams; {_MOST:,} are read')
  return found


def _streams(file: BinaryIO, size: int) -> list[Stream]:
  file.seek(0)
  head = file.read(12)
  if head[:4] in (b'RIFF', b'RIFX', b'RF64', b'BW64') and head[8:] == b'WAVE':
    return _wav(file, size)
  if head[:4] == b'OggS':
    return _ogg(_all(file, size))
  at = _tag(head) if head[:3] == b'ID3' else 0
  file.seek(at)
  start = file.read(4)
  if start == b'fLaC':
    return _flac(_all(file, size))
  if _frame(start):
    return _mp3(_all(file, size))
  _check_size(file, size)
  return [Stream(None)]


def foreign(file: BinaryIO) -> str:
  """The predicate of a sentence about a file in a format that is not read; '' if unknown."""
  file.seek(0)
  head = file.read(512)
  for at, magic, sentence in _OTHERS:
    if head[at:at + len(magic)] == magic:
      return sentence
  if head[:2] in (b'\xff\xf1', b'\xff\xf9'):  # ADTS
    return f'is an AAC file; {_FFMPEG}'
  text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if text.startswith(_TEXTS):
    return 'is a web page, not a recording; download it again'
  return ''


def is_sound(head: bytes) -> bool:
  """Whether a file that starts with ``head``, at least 12 bytes, is a sound of any format."""
  return (head[:4] in (b'RIFF', b'RIFX', b'RF64', b'BW64', b'riff') and head[8:12] in (
              b'WAVE', b'\xa5\xd6\x28\xdb') or head[:4] == b'FORM' and head[8:11] == b'AIF'
          or head.startswith((b'OggS', b'fLaC', b'ID3', b'caff', b'.snd', b'NIST_1A', b'#!AMR'))
          or head[4:8] == b'ftyp' or head[:4] == b'\x1aE\xdf\xa3'
          or head[:2] in (b'\xff\xf1', b'\xff\xf9') or _frame(head[:4]) is not None)


def _all(file: BinaryIO, size: int) -> bytes:
  if size > BIGGEST:
    raise Unusable(f'has {size:,} bytes, and files of this format are read up to {BIGGEST:,}; '
                   'split it')
  file.seek(0)
  return file.read()


# -- WAV --------------------------------------------------------------------------------------


def _wav(file: BinaryIO, size: int) -> list[Stream]:
  out, start = [], 0
  while len(out) <= _MOST:
    stream, following = _riff(file, start, size)
    out.append(stream)
    if following is None:
      break
    start = following
  return out


def _riff(file: BinaryIO, start: int, size: int) -> tuple[Stream, int | None]:
  """(the stream of the RIFF file at ``start``, where another one follows or None)."""
  file.seek(start)
  order = '>' if file.read(4) == b'RIFX' else '<'
  at, wide = start + 12, None  # wide: where the 64-bit size of an RF64 is
  align = 1
  for _ in range(_MOST):
    file.seek(at)
    chunk = file.read(8)
    if len(chunk) < 8:
      return Stream(None), None  # no samples: for the decoder to say
    length = struct.unpack(order + 'I', chunk[4:])[0]
    if chunk[:4] == b'data':
      break
    if chunk[:4] == b'ds64':
      wide = at + 16
    elif chunk[:4] == b'fmt ':
      align = max(1, struct.unpack(order + 'H', file.read(16)[12:14].rjust(2, b'\0'))[0])
    at += 8 + length + length % 2
  else:
    raise Unusable(f'has {_MOST:,} chunks before its samples')
  begin, field = at + 8, at + 4
  if wide is not None and length == 0xffffffff:
    file.seek(wide)
    length = struct.unpack('<Q', file.read(8).ljust(8, b'\0'))[0]
  else:
    wide = None
  there = size - begin
  whole = there // align * align
  following = None
  if length > there:
    unknown = wide is None and length >= _PIPE or length >= 2**63
    if not unknown and length - there > max(44, begin - start):
      raise Unusable(f'is truncated: it has {there:,} bytes of samples, but its header announces '
                     f'{length:,}')
    counted = whole
  elif length == there:
    counted = length
  else:
    counted, following = _behind(file, begin, length, size, order)
    counted = counted // align * align
  last = size if following is None else following
  if counted == length and start == 0 and following is None:
    return Stream(None), None
  if last - start > BIGGEST or wide is None and counted > 0xfffffff0:
    raise Unusable(f'has a header that counts {length:,} bytes of samples, but {there:,} follow; '
                   'it is too large to be read in spite of that')
  file.seek(start)
  data = bytearray(file.read(begin + counted - start))
  if wide is None:
    struct.pack_into(order + 'I', data, field - start, counted)
    struct.pack_into(order + 'I', data, 4, len(data) - 8)
  else:
    struct.pack_into('<Q', data, wide - start, counted)
    struct.pack_into('<Q', data, wide - 8 - start, len(data) - 8)
  return Stream(bytes(data)), following


def _behind(file: BinaryIO, begin: int, length: int, size: int, order: str
            ) -> tuple[int, int | None]:
  """(bytes of samples, where another RIFF file starts or None) of samples that end early."""
  end = at = begin + length
  for _ in range(_MOST):
    if at >= size:
      break
    file.seek(at)
    head = file.read(12)
    if head[:4] in (b'RIFF', b'RIFX') and head[8:] == b'WAVE':
      return length, at
    if at == end and length % 2:
      at += 1  # the byte that pads an odd chunk
      continue
    name, chunk = head[:4], struct.unpack(order + 'I', head[4:8].ljust(4, b'\0'))[0]
    if len(head) >= 8 and name.isascii() and name.decode().isprintable() and (
        at + 8 + chunk <= size + 1):
      at += 8 + chunk + chunk % 2
      continue
    file.seek(at)
    if length and (size - at <= _TAIL or not any(
        piece.strip(b'\0') for piece in iter(lambda: file.read(2**20), b''))):
      return length, None
    if at > end + 1:
      raise Unusable(f'has {size - at:,} bytes behind its samples that are no chunk of a WAV file; '
                     f'{_FFMPEG}')
    return size - begin, None
  return length, None


# -- other headers with sizes -----------------------------------------------------------------


def _check_size(file: BinaryIO, size: int) -> None:
  """Raises Unusable where an AIFF, AU or W64 has fewer bytes than its header announces."""
  file.seek(0)
  head = file.read(24)
  announced = 0
  if head[:4] == b'FORM' and head[8:12] in (b'AIFF', b'AIFC'):
    announced = 8 + int.from_bytes(head[4:8], 'big')
  elif head[:4] in (b'.snd', b'dns.'):
    order = 'big' if head[:1] == b'.' else 'little'
    begin, length = (int.from_bytes(head[i:i + 4], order) for i in (4, 8))
    announced = begin + length if length != 0xffffffff else 0
  elif head[:16] == b'riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00':
    announced = int.from_bytes(head[16:24], 'little')
  if announced > size and announced < 0x7fff0000:
    raise Unusable(f'is truncated: it has {size:,} bytes, but its header announces {announced:,}')


# -- FLAC -------------------------------------------------------------------------------------


def _flac(data: bytes) -> list[Stream]:
  """A stream starts with 'fLaC' and a STREAMINFO block of 34 bytes (RFC 9639)."""
  starts, at = [], 0
  while (at := data.find(b'fLaC', at)) >= 0:
    if data[at + 4:at + 8] in (b'\0\0\0\x22', b'\x80\0\0\x22'):
      starts.append(at)
    at += 4
  def counted(start: int) -> int:
    return int.from_bytes(data[start + 21:start + 26], 'big') & (2**36 - 1)
  if len(starts) < 2:
    return [Stream(None, counted(starts[0]) if starts else 0)]
  return [Stream(data[start:stop], counted(start))
          for start, stop in zip(starts, [*starts[1:], len(data)])]


# -- OGG --------------------------------------------------------------------------------------


def _checksum(page: bytes) -> int:
  """CRC-32 of a page whose checksum field is 0 (RFC 3533: polynomial 0x04c11db7, not mirrored)."""
  mirrored = zlib.crc32(page.translate(_MIRRORED), 0xffffffff) ^ 0xffffffff
  return int(f'{mirrored:032b}'[::-1], 2)


def _ogg(data: bytes) -> list[Stream]:
  """A page is 'OggS', version 0, flags (1 continued, 2 first, 4 last), 8 bytes of position,
  serial, sequence number, checksum (4 bytes each), n, n sizes, and as many bytes as they sum to.
  """
  chains: list[tuple[int, int, dict[bytes, int]]] = []  # start, stop, serial -> its last page
  numbers: dict[bytes, int] = {}
  at, opening = 0, False
  while (at := data.find(b'OggS', at)) >= 0:
    header = data[at:at + 27]
    sizes = data[at + 27:at + 27 + (header[26] if len(header) == 27 else 0)]
    stop = at + 27 + len(sizes) + sum(sizes)
    if len(header) < 27 or len(sizes) < header[26] or stop > len(data):
      raise Unusable('is truncated: its last OGG page is incomplete')
    page = data[at:stop]
    if header[4] or _checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(
        header[22:26], 'little'):
      raise Unusable(f'is damaged: its OGG page at byte {at:,} has a wrong checksum')
    first, serial, number = header[5] & 2, header[14:18], int.from_bytes(header[18:22], 'little')
    if first and not opening:
      chains.append((at, stop, {}))
      numbers = {}
    if not chains:
      raise Unusable('is damaged: its first OGG page does not start a stream')
    opening = bool(first)
    if number != numbers.get(serial, number):
      raise Unusable(f'is damaged: OGG pages are missing before byte {at:,}')
    numbers[serial] = number + 1 & 0xffffffff
    start, _, last = chains[-1]
    if header[6:14] != b'\xff' * 8:  # a packet ends in this page
      last[serial] = at
    chains[-1] = (start, stop, last)
    at = stop
  ended = all(data[page + 5] & 4 for _, _, last in chains for page in last.values())
  if len(chains) == 1 and ended and not chains[0][0]:
    return [Stream(None)]
  return [Stream(_ended(data[start:stop], [page - start for page in last.values()]))
          for start, stop, last in chains]


def _ended(data: bytes, pages: list[int]) -> bytes:
  """An OGG whose last pages, which start at ``pages``, have the flag 'last'."""
  out = bytearray(data)
  for at in pages:
    if not out[at + 5] & 4:
      count = out[at + 26]
      stop = at + 27 + count + sum(out[at + 27:at + 27 + count])
      out[at + 5] |= 4
      out[at + 22:at + 26] = bytes(4)
      out[at + 22:at + 26] = _checksum(bytes(out[at:stop])).to_bytes(4, 'little')
  return bytes(out)


# -- MP3 --------------------------------------------------------------------------------------


class _Frames:
  """A stream of an MP3 while its frames are counted."""

  def __init__(self, start: int, form: tuple, samples: int, tag: int, announced: int):
    self.start = self.stop = start
    self.form, self.samples = form, samples  # of a frame
    self.tag = tag                           # where the first frame's tag starts; 0 = no tag
    self.announced = announced               # frames, 0 if unknown
    self.count = 0                           # frames with sound
    self.cut = False                         # the last frame is incomplete


def _mp3(data: bytes) -> list[Stream]:
  found: list[_Frames] = []
  at, tries = 0, 0
  while at < len(data):
    if length := _tag(data[at:at + 32]):
      at += length
      continue
    frame = _frame(data[at:at + 4])
    if not frame:
      at, more = _resync(data, at + 1)
      tries += more
      if tries > _NOISE:
        raise Unusable('is damaged: much of it is no MP3')
      continue
    size, samples, form = frame
    tag, announced = _count(data, at, form)
    if len(found) > _MOST:
      break
    if tag or not found or found[-1].form != form:
      found.append(_Frames(at, form, samples, tag, announced))
    now = found[-1]
    if at + size > len(data):
      now.cut = True
      break
    now.count += not tag
    at += size
    now.stop = at
  found = [one for one in found if one.count or one.cut]
  return [_stream(data, one, len(found) > 1) for one in found] or [Stream(None)]


def _stream(data: bytes, one: _Frames, several: bool) -> Stream:
  if one.announced and one.count < one.announced - 2:
    raise Unusable(f'is truncated: it has {one.count:,} MP3 frames, but announces '
                   f'{one.announced:,}')
  if one.cut and not one.announced:
    raise Unusable('is truncated: its last MP3 frame is incomplete')
  least = max(1, one.count * one.samples - _SLACK)
  piece = data[one.start:one.stop]
  if one.announced and one.count <= one.announced + 1:
    return Stream(piece if several else None, least, False)
  if one.tag:
    piece = piece[_frame(piece[:4])[0]:]  # type: ignore[index]  # ``one`` began with a frame
  # libmpg123 guesses a length from the first frame unless there is a count.
  return Stream(_counting_frame(piece, one.count) + piece, least, False)


def _counting_frame(data: bytes, count: int) -> bytes:
  """A frame without sound that announces ``count`` frames, in the form of the first of ``data``."""
  header = bytearray(data[:4])
  header[1] |= 1                          # no checksum
  for bits in range(header[2] >> 4, 15):  # a bit rate that leaves room for the tag
    header[2] = header[2] & 0x0d | bits << 4
    frame = _frame(bytes(header))
    assert frame is not None, 'a bit rate of the table'
    if frame[0] >= 4 + 32 + 12:
      break
  out = bytearray(frame[0])
  out[:4] = header
  side = _side(frame[2])
  out[4 + side:4 + side + 12] = b'Xing' + struct.pack('>II', 1, count)
  return bytes(out)


def _side(form: tuple[int, int, bool]) -> int:
  """Bytes of side information, which precede a tag."""
  version, _, mono = form
  return (17 if mono else 32) if version == 3 else 9 if mono else 17


def _count(data: bytes, at: int, form: tuple[int, int, bool]) -> tuple[int, int]:
  """(start, frames) of the frame count in the frame at ``at``; (0, 0) if it has none."""
  for skip in (4 + _side(form), 6 + _side(form)):
    tag, flags = data[at + skip:at + skip + 4], data[at + skip + 4:at + skip + 8]
    if tag in (b'Xing', b'Info') and flags[:3] == b'\0\0\0' and (
        b'\0' <= flags[3:] < b'\x10'):
      number = data[at + skip + 8:at + skip + 12] if flags[3] & 1 else b''
      return at + skip, int.from_bytes(number, 'big')
  if data[at + 36:at + 42] in (b'VBRI\0\1', b'VBRI\0\0'):
    return at + 36, int.from_bytes(data[at + 50:at + 54], 'big')
  return 0, 0


def _tag(head: bytes) -> int:
  """Bytes of the ID3v2, ID3v1 or APE tag that starts with ``head``; 0 if none does."""
  if head[:3] == b'ID3' and len(head) >= 10 and not any(byte & 128 for byte in head[6:10]):
    size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
    return 10 + size + (10 if head[5] & 16 else 0)
  if head[:3] == b'TAG':
    return 128
  if head[:8] == b'APETAGEX' and len(head) >= 24:
    size, header = int.from_bytes(head[12:16], 'little'), head[23] & 32  # this is the header
    return 32 + size if header else 32
  return 0


_HEADER = re.compile(b'\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]')  # of a frame, as in ``_frame``


def _resync(data: bytes, at: int) -> tuple[int, int]:
  """(where the next two frames start, places looked at); the end of the data if there are none."""
  tries = 0
  while tries <= _NOISE and (found := _HEADER.search(data, at)):
    tries += 1
    at = found.start()
    frame = _frame(data[at:at + 4])
    if frame:
      after = at + frame[0]
      following = _frame(data[after:after + 4])
      if following and following[2] == frame[2] or after == len(data):
        return at, tries
    at += 1
  return len(data), tries


def _frame(header: bytes) -> tuple[int, int, tuple[int, int, bool]] | None:
  """(bytes, samples, (version, rate, mono)) of an MP3 frame from its first 4 bytes.

  ISO 11172-3 and 13818-3, layer III.
  """
  if len(header) < 4 or header[0] != 255 or header[1] & 0xe6 != 0xe2:  # sync, layer III
    return None
  version, bits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
  if version == 1 or bits in (0, 15) or rate == 3:
    return None
  samples = 1152 if version == 3 else 576
  size = samples // 8 * 1000 * _KBITS[version == 3][bits - 1] // _RATES[version][rate]
  form = version, _RATES[version][rate], header[3] >> 6 == 3
  return size + (header[2] >> 1 & 1), samples, form
