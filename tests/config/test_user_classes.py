"""Which classes are imported: those that the user named, never those of a file from elsewhere."""

import json

import pytest

from ttt_jax import config as config_lib
from ttt_jax.audio import codec as codecs
from ttt_jax.audio.glm4 import decoder
from ttt_jax.cli import main
from ttt_jax.config import CodecConfig, user_classes
from ttt_jax.errors import UserError

CLASS = """
import pathlib
import numpy as np
from ttt_jax.audio import codec
pathlib.Path(__file__).with_name('ran').touch()


class Tone(codec.Codec):
  name, codebook_size, sample_rate, tokens_per_second = 'tone', 4, 8000, 10

  def encode(self, waveform, rate):
    return np.zeros(1, int)

  def decode(self, codes):
    return np.zeros(len(codes))
"""
REFUSED = r"is '\w+:Tone', a class that a stored file names; .*--config.codec.name=\w+:Tone"


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
  """A folder on the path with a module, a data set's codec and a workdir's config that name it."""
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'home'))
  name = f'evil{abs(hash(request.node.name))}'
  (tmp_path / f'{name}.py').write_text(CLASS)
  (tmp_path / 'codec').mkdir()
  (tmp_path / 'codec' / 'codec.json').write_text(json.dumps(
      {'kind': f'{name}:Tone', 'name': 'tone', 'arrays': [], 'settings': {}}))
  (tmp_path / 'config.json').write_text(json.dumps({'codec': {'name': f'{name}:Tone'}}))
  return tmp_path, f'{name}:Tone'


def ran(folder):
  return (folder / 'ran').exists()


def test_stored_files_import_nothing(folder):
  path, _ = folder
  stored = config_lib.load(path / 'config.json')
  for config in (None, CodecConfig('codec2'), stored.codec):
    with pytest.raises(UserError, match=REFUSED):
      codecs.load(path / 'codec', config)
  with pytest.raises(UserError, match='config key codec.name ' + REFUSED):
    codecs.create(stored.codec)
  with pytest.raises(UserError, match=REFUSED):
    codecs.planned_codebook_size(stored.codec)
  assert not ran(path)
  assert json.loads(json.dumps(config_lib.to_dict(stored)))['codec'] == config_lib.to_dict(
      stored.codec)


def test_the_name_in_a_config_imports_that_class_alone(folder):
  path, name = folder
  with pytest.raises(UserError, match=REFUSED):
    codecs.load(path / 'codec', CodecConfig('other:Tone'))
  assert not ran(path)
  assert codecs.load(path / 'codec', CodecConfig(name)).name == 'tone'
  assert ran(path)
  assert codecs.load(path / 'codec').name == 'tone'  # nothing is imported any more


def test_a_variable_names_classes(folder, monkeypatch):
  path, name = folder
  monkeypatch.setenv('TTT_JAX_CODECS', f'a:B, {name}')
  assert codecs.load(path / 'codec').name == 'tone'


@pytest.mark.parametrize('how', ['flag', 'file'])
def test_the_command_line_remembers_what_the_user_named(folder, how):
  path, name = folder
  config = path / 'config.py'
  config.write_text(f"get_config = lambda: {{'codec': {{'name': {name!r}}}}}")
  words = ['evaluate', '--workdir', str(path)]
  read = lambda more=(): main._load_config(*main._parse([*words, *more])).codec
  with pytest.raises(UserError, match=REFUSED):
    codecs.load(path / 'codec', read())
  given = [f'--config.codec.name={name}'] if how == 'flag' else ['--config', str(config)]
  assert user_classes.given(read(given)) == (name,)
  assert not ran(path)
  assert codecs.load(path / 'codec', read()).name == 'tone'
  assert (path / 'home' / 'ttt_jax' / 'codecs').read_text() == f'{name}\n'


def test_a_decoder_from_a_file_is_not_imported(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'evildecoder.py').write_text("open(__file__ + '.ran', 'w')\nDecoder = None\n")
  for name in decoder.FILES:
    (tmp_path / name).touch()
  (tmp_path / 'codec.json').write_text(json.dumps({
      'kind': 'glm4_voice', 'name': 'glm-4-voice', 'arrays': [], 'settings': {
          'decoder_name': 'evildecoder:Decoder', 'decoder_weights': str(tmp_path)}}))
  with pytest.raises(UserError, match='codec.decoder=evildecoder:Decoder'):
    codecs.load(tmp_path).decode([1])
  assert not (tmp_path / 'evildecoder.py.ran').exists()
  config = CodecConfig('glm4_voice', decoder='evildecoder:Decoder')
  user_classes.check(codecs.load(tmp_path, config).decoder_name, 'it', 'codec.decoder')


def test_an_error_in_the_module_is_a_sentence(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'brokenmodule.py').write_text('1 / 0\n')
  with pytest.raises(UserError, match='cannot be imported: ZeroDivisionError: division by zero'):
    codecs.create(CodecConfig('brokenmodule:Codec'))
