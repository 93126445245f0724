"""The page: its document, and its life in Chromium against a real server."""

import base64
import hashlib
import html.parser
import os
import pathlib
import re

import numpy as np
import pytest

from tests.serve import tiny
from tools import browser as browsers
from ttt_jax.audio import asr_judges, io
from ttt_jax.serve import page, realtime

ROOT = pathlib.Path(__file__).parents[3]
needs_chromium = pytest.mark.skipif(browsers.program() is None, reason='Chromium is not installed')
ROUTES = (page.ROUTE, *realtime.ROUTES)
CONNECTED = 'document.querySelector("#connection").dataset.state === "on"'
DONE = 'document.querySelector(".turn.model audio") && !state.answer'


class Elements(html.parser.HTMLParser):
  """Every element: (tag, attributes)."""

  def __init__(self, text):
    super().__init__()
    self.found = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))


def test_the_document_is_complete_and_its_policy_fits():
  text, policy = page.document()
  text = text.decode()
  elements = Elements(text).found
  names = {attrs['id'] for _, attrs in elements if 'id' in attrs}
  assert set(re.findall(r"\$\('([\w-]+)'\)", text)) <= names
  labelled = {attrs.get('for') for tag, attrs in elements if tag == 'label'}
  for tag, attrs in elements:
    assert not {'src', 'href', 'style'} & set(attrs) or attrs.get('href') in ('#message', 'data:,')
    assert not any(key.startswith('on') for key in attrs)  # no inline handlers
    if tag in ('input', 'textarea') and attrs.get('type') != 'checkbox':
      assert attrs['id'] in labelled or 'aria-label' in attrs, attrs
  assert re.findall(r'https?://[^\s\'"]+', text) == []
  for tag, directive in (('script', 'script-src'), ('style', 'style-src')):
    inside, = re.findall(f'<{tag}>(.*?)</{tag}>', text, re.S)
    digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    assert f"{directive} 'sha256-{digest}'" in policy
  assert "default-src 'none'" in policy and 'unsafe' not in policy


@pytest.fixture(scope='module')
def address():
  with tiny.running(routes=ROUTES) as (_, url):
    yield url


def wav(path, *pieces, rate=24_000):
  """A WAV of sounds and of seconds of faint noise."""
  rng = np.random.default_rng(0)
  joined = np.concatenate([rng.normal(0, 1e-4, round(p * rate)) if np.isscalar(p) else p
                           for p in pieces])
  io.write_wav(path, joined.astype(np.float32), rate)
  return path


@needs_chromium
@pytest.mark.slow
def test_a_typed_turn(address):
  with browsers.Browser(patience=300) as browser:
    browser.open(address)
    browser.wait(CONNECTED)
    browser.wait('document.querySelector("#history").placeholder === "1000"')
    browser.run('(document.querySelector("#message").value = "3 1 4", '
                'document.querySelector("#compose").requestSubmit())')
    browser.wait(DONE)
    browser.run('newTurn("user", "<b>&")')
    assert browser.run('[...document.querySelectorAll(".turn.user .said")].map('
                       '(said) => said.textContent)') == ['3 1 4', '<b>&']
    browser.wait('document.querySelector(".facts [data-name=\\"first audio\\"]")')
    factor = browser.run('Number(document.querySelector('
                         '"[data-name=\\"real-time factor\\"] b").textContent)')
    assert factor > 0
    cells = browser.run('[...document.querySelectorAll(".cell")].map((c) => c.className)')
    assert cells and all('set' in name for name in cells)  # no mask is left
    assert not browser.run('document.querySelectorAll(".block.open").length')
    assert browser.run('document.querySelector("#announce").textContent').startswith('tiny: ')
    for width, height in ((320, 568), (390, 844), (1280, 800)):
      for dark in (False, True):
        browser.size(width, height, dark)
        assert browser.run('document.documentElement.scrollWidth') <= width
        for name in ('#hold', '#hands-free', '#compose button', '#settings-button'):
          box = browser.run(f'(({{x, y, width, height}}) => [x, y, x + width, y + height, height])'
                            f'(document.querySelector("{name}").getBoundingClientRect())')
          assert box[0] >= 0 and box[2] <= width and box[3] <= height and box[4] >= 40, name
        assert browser.run(CONTRAST) == []
    assert browser.problems == []


# Elements with text whose colour is too near to that of what is behind them (WCAG: 4.5 to 1).
CONTRAST = '''(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const found = rgb(getComputedStyle(e).backgroundColor); if (found[3] > 250) return found; }
    return [255, 255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility()
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && !e.disabled
      && !e.closest('.hidden, .skip')).map((e) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [e.className || e.id || e.tagName, (a + 0.05) / (b + 0.05)]; })
    .filter(([, ratio]) => ratio < 4.5).map(([name, ratio]) => `${name} ${ratio.toFixed(1)}`);
})()'''


@needs_chromium
@pytest.mark.slow
def test_keyboard_and_a_key(tmp_path):
  voice = 0.3 * np.sin(2 * np.pi * 200 * np.arange(48_000) / 24_000)
  with tiny.running(key='secret', routes=ROUTES) as (_, url):
    with browsers.Browser(wav(tmp_path / 'mic.wav', voice, 1.0), 300) as browser:
      browser.open(url)
      browser.wait('document.activeElement.id === "key"')
      browser.run('(document.querySelector("#key").value = "secret", '
                  'document.querySelector("#key-entry").requestSubmit())')
      browser.wait(CONNECTED)
      browser.run('document.activeElement.blur()')
      browser.key('Space', True, 32, ' ')
      browser.wait('state.sentSamples > 12000')
      browser.key('Space', False, 32)
      browser.wait('document.querySelector(".turn.model .facts") && !state.answer')
      assert browser.run('document.querySelectorAll(".turn.user audio").length') == 1
      order = []
      browser.run('document.querySelector("#settings-button").focus()')
      for _ in range(30):  # a player has several controls
        order.append(browser.run('document.activeElement.id || document.activeElement.tagName'))
        browser.key('Tab', True, 9)
        browser.key('Tab', False, 9)
      for name in ('hold', 'hands-free', 'message', 'file'):
        assert name in order, order


# -- the demo's model -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def demo():
  """A server of the demo's model, and held-out spoken questions: (address, [(answer, sound)])."""
  folder = pathlib.Path(os.environ.get('TTT_JAX_TEST_DEMO', ROOT / 'demo'))
  if not (folder / 'checkpoints').is_dir():
    pytest.skip(f'there is no trained model in {folder}; run `make demo` or set TTT_JAX_TEST_DEMO')
  from ttt_jax import config as config_lib
  from ttt_jax.config import ServeConfig
  from ttt_jax.data import heldout
  from ttt_jax.serve import served_model
  model = served_model.load(config_lib.load(folder / 'config.json'), folder)
  records = [one for one in heldout.load_records(folder / 'data') if one.task == 'audio_qa'][:6]
  codec = model.codec
  asked = [(record.turns[-1].parts[0].text, io.resample(
      codec.sound(next(record.audio()).known_codes), codec.sample_rate, 24_000))
      for record in records]
  with tiny.running(model, ServeConfig(), routes=ROUTES) as (_, url):
    yield url, asked


def spoken(browser):
  """The waveform of the last answer."""
  raw = browser.run('''(() => {
    const turn = [...state.turns.values()].filter((t) => t.role === 'model').at(-1);
    return base64(new Uint8Array(new Blob(turn.pieces).size ? turn.pieces.flatMap(
      (p) => [...new Uint8Array(p.buffer)]) : []));
  })()''')
  return np.frombuffer(base64.b64decode(raw), '<i2').astype(np.float32) / 32768


def digits(text):
  return text.replace('-', ' ').split('=')[-1].strip()


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize('hands_free', [False, True])
def test_a_spoken_question_is_answered_aloud(demo, tmp_path, hands_free):
  url, asked = demo
  text, sound = asked[0]
  judge = asr_judges.create('pocketsphinx')
  with browsers.Browser(wav(tmp_path / 'mic.wav', 0.6, sound, 2.0), 300) as browser:
    browser.open(url)
    browser.wait(CONNECTED)
    if hands_free:
      browser.run('document.querySelector("#hands-free").click()')
    else:
      browser.run('document.activeElement.blur()')
      browser.key('Space', True, 32, ' ')
      browser.wait(f'state.sentSamples > {len(sound) + 24_000}')
      browser.key('Space', False, 32)
    browser.wait(DONE)
    assert browser.run('document.querySelector(".turn.model .said").textContent') == text
    names = ' '.join(asr_judges.DIGITS[int(digit)] for digit in digits(text))
    assert judge.transcribe(spoken(browser), 24_000) == names
    # What was said is written in the end, too, as well as a model transcribes a question that was
    # trained to transcribe digits.
    browser.wait('!document.querySelector(".turn.user .unknown")')
    assert browser.run('document.querySelector(".turn.user .said").textContent')[0] == text[0]
    browser.wait('!state.playing')
    assert not browser.run('document.querySelector("[data-name=gaps]")')
    assert browser.problems == []
