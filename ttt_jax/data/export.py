"""Copies of sources with codes in place of audio files: small enough to store and share."""

import json
import pathlib
from typing import Any

from ttt_jax.audio.codec import Codec
from ttt_jax.config import CodecConfig
from ttt_jax.data.records import places, readers, sounds
from ttt_jax.data.records.parts import Clip
from ttt_jax.errors import UserError
from ttt_jax.storage import files


def inline_codes(source: str | pathlib.Path, target: str | pathlib.Path, codec: Codec) -> int:
  """Copies a .jsonl of recordings or records, with codes in place of audio files.

  The codec is saved in codec/ beside ``target``, where `ttt-jax prepare` reads it.

  Args:
    source: the .jsonl to read; audio paths are relative to it.
    target: the .jsonl to write, by rename.
    codec: encodes the files; if codec/ exists beside target, its codec must have the same name.

  Returns:
    The number of lines written.

  Raises:
    UserError: malformed source, unreadable audio, or another codec beside target.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  known: dict[Clip, list[int]] = {}
  def replace(value: Any, where: str) -> Any:
    if isinstance(value, list):
      return [replace(item, where) for item in value]
    if not isinstance(value, dict):
      return value
    if isinstance(value.get('audio'), (str, bytes, dict)):
      rest = {key: item for key, item in value.items() if key != 'audio'}
      if 'codes' in value:
        return rest
      part = sounds.audio_part(value, where, '')
      if part.clip not in known:
        try:
          known[part.clip] = codec.encode(*places.read(part, source.parent)).tolist()
        except UserError as error:
          raise UserError(f'{where}: {error}') from error
      return {**{key: item for key, item in rest.items() if key not in sounds.STRETCH},
              'codes': known[part.clip]}
    return {key: replace(item, where) for key, item in value.items()}
  lines = [json.dumps(replace(value, where), ensure_ascii=False, separators=(',', ':'))
           for where, value in readers.read(source)]
  _save_codec(codec, target.parent)
  files.write_text(target, '\n'.join(lines) + '\n')
  return len(lines)


def _save_codec(codec: Codec, directory: pathlib.Path) -> None:
  from ttt_jax.audio import codec as codecs
  saved = directory / 'codec'
  if (saved / codecs.FILE).is_file():
    found = codecs.load(saved, CodecConfig(codecs.kind_of(type(codec)))).name
    if found != codec.name:
      raise UserError(f'{saved} holds the codec {found}, not {codec.name}; write to another '
                      'directory.')
    return
  codec.save(saved)
