"""File names made of names that come from data."""

import unicodedata

from hypothesis import given, settings, strategies
import pytest

from ttt_jax.storage.names import FileNames, slug


@pytest.mark.parametrize('text', ['clip_1', 'ID-0007.take2', 'हिन्दी', '录音', 'Ünïcode', '1'])
def test_a_safe_name_stays(text):
  assert slug(text) == text


@pytest.mark.parametrize('text', [
    '../../x', '/etc/passwd', 'a/b', 'C:\\x', '..', '.', '', '.hidden', '-rf', 'a\0b', 'a\nb', ' ',
    'CON', 'con.txt', 'lpt1.a.b', 'x.', 'e\N{COMBINING ACUTE ACCENT}', '\ud800', 'q' * 4000,
    '録' * 400, '$(reboot)', 'a..b', '<script>', 'a b'])
def test_an_unsafe_name_becomes_a_safe_one(text, tmp_path):
  name = slug(text)
  assert name != text and len(name.encode()) <= 89 and name == unicodedata.normalize('NFC', name)
  assert not set(name) & set('/\\:*?"<>|\0\n\r\t ') and name[0] not in '.-' and name[-1] != '.'
  assert '..' not in name
  assert name.split('.')[0].lower() not in ('con', 'lpt1')
  (tmp_path / f'{name}.generated.wav.partial').write_text('')  # a file of that name can exist
  assert [file.name for file in tmp_path.iterdir()] == [f'{name}.generated.wav.partial']


def test_names_of_one_folder_differ():
  names = FileNames()
  texts = ['x', 'x', 'x-2', 'X', 'a/b', 'a b', 'a/b', 'é', 'e\N{COMBINING ACUTE ACCENT}', 'ﬁ', 'fi',
           'straße', 'STRASSE']
  given_ = [names.new(text) for text in texts]
  assert given_[:4] == ['x', 'x-2', 'x-2-2', 'X-3']
  assert len({unicodedata.normalize('NFKC', name).casefold() for name in given_}) == len(texts)


def test_endings():
  names = FileNames()
  assert [names.new('audio', '.wav') for _ in range(3)] == ['audio.wav', 'audio-2.wav',
                                                            'audio-3.wav']
  assert names.new('audio', '.flac') == 'audio.flac'
  assert names.new('audio', './x') == 'audio'


@settings(max_examples=200, deadline=None)
@given(strategies.lists(strategies.text(max_size=4), max_size=8))
def test_any_names_differ(texts):
  names = FileNames()
  found = [names.new(text, '.wav') for text in texts]
  assert len({name.casefold() for name in found}) == len(texts)


def test_many_equal_names():
  names = FileNames()  # with a search from 2 for every name this takes minutes
  assert len({names.new('audio', '.wav') for _ in range(20_000)}) == 20_000
