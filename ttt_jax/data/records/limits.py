"""What one record may cost to read; more means another format, or a decompression bomb."""

LONGEST = 256 * 2**20  # bytes of one record: 1.6 hours of 16-bit speech at 16 kHz in base64
VALUES = 2**22         # values and keys of one record of JSON: at most about 0.5 GB in memory
UNCHECKED = 2**22      # bytes; JSON up to here has too few values to count
BLANKS = 10**6         # empty lines in a row
RATIO = 500            # decompressed bytes per compressed byte, after the first FREE bytes;
FREE = 64 * 2**20      # text reaches 5 to 50


def values(text: bytes | str) -> int:
  """An upper bound of the number of values in a piece of JSON; 0 if it is short."""
  if len(text) <= UNCHECKED:
    return 0
  marks = (b',', b'[', b'{') if isinstance(text, bytes) else (',', '[', '{')
  # The marks are of the type of the text, which pyright cannot follow.
  return sum(text.count(mark) for mark in marks)  # type: ignore[arg-type]
