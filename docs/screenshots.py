"""Makes docs/images/talk.png: the page of `ttt-jax serve` during an answer of the demo's model.

  ttt-jax serve --workdir demo &
  python docs/screenshots.py --address http://127.0.0.1:8000 demo/data/heldout_wav/QUESTION.wav ...

The recordings are sent one after another, as if they were spoken.
Needs Chromium and the packages of the extra 'test'. The picture differs a little between runs, so
no test compares it.
"""

import argparse
import base64
import io
import pathlib
import sys

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.browser import Browser  # noqa: E402

# The last turn is frozen when this share of its tokens is set.
_HALF = '''(() => {
  const turns = document.querySelectorAll('.turn.model');
  const block = turns[turns.length - 1]?.querySelector('.block.open');
  if (turns.length < %d || !block) return false;
  const share = block.querySelectorAll('.set').length / block.children.length;
  return share > 0.35 && share < 0.85;
})()'''
_FREEZE = '''(() => {
  const real = state.socket.onmessage;
  state.socket.onmessage = (message) => {
    if (!window.frozen) real(message);
    window.frozen ||= %s;
  };
})()'''


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('recordings', nargs='+', type=pathlib.Path)
  parser.add_argument('--address', default='http://127.0.0.1:8000')
  parser.add_argument('--out', default=str(ROOT / 'docs' / 'images' / 'talk.png'))
  parser.add_argument('--all', metavar='DIR', help='also wide and phone, light and dark')
  args = parser.parse_args()
  with Browser(patience=600) as browser:
    browser.size(860, 700, scale=1.5)
    browser.open(args.address)
    browser.wait('document.querySelector("#connection").dataset.state === "on"')
    for number, recording in enumerate(args.recordings, 1):
      if number == len(args.recordings):
        browser.run(_FREEZE % (_HALF % number))
      data = base64.b64encode(recording.read_bytes()).decode()
      browser.run(f'recording(new File([Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0))], '
                  f'{recording.name!r}))')
      browser.wait('window.frozen || document.querySelectorAll(".turn.model audio").length >= '
                   f'{number}')
    browser.picture(args.out)
    image = Image.open(args.out).convert('RGB').quantize(128)
    data = io.BytesIO()
    image.save(data, 'PNG', optimize=True)
    pathlib.Path(args.out).write_bytes(data.getvalue())
    print(f'{args.out}: {len(data.getvalue()) / 1000:.0f} kB')
    for name, width, height in (('wide', 1280, 800), ('phone', 390, 844)) if args.all else ():
      for dark in (False, True):
        browser.size(width, height, dark)
        browser.picture(pathlib.Path(args.all) / f'{name}-{"dark" if dark else "light"}.png')
    for problem in browser.problems:
      print('problem:', problem)


if __name__ == '__main__':
  main()
