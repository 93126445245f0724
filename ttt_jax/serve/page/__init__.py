"""`GET /`: the page to talk to the model, one document without outside parts.

Style and script are inside the document. The policy allows exactly those two by their hashes, so a
text that found its way into the page as markup could not run. ``blob:`` is for the sound worklets,
which the script makes of its own source.
"""

import base64
import functools
import hashlib
import json
import pathlib

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HERE = pathlib.Path(__file__).parent


@functools.cache
def document() -> tuple[bytes, str]:
  """(the page, its Content-Security-Policy)."""
  read = lambda name: (_HERE / name).read_text(encoding='utf-8')
  style = read('style.css')
  script = read('script.js').replace("/*WORKLETS*/''", json.dumps(read('worklets.js')))
  assert '</script' not in script and '</style' not in style
  page = read('index.html').replace('/*STYLE*/', style).replace('/*SCRIPT*/', script)
  policy = ('default-src \'none\'', f'script-src \'{_hash(script)}\' blob:',
            f'style-src \'{_hash(style)}\'', 'connect-src \'self\'', 'media-src blob:',
            'img-src data:', 'base-uri \'none\'', 'form-action \'none\'',
            'frame-ancestors \'none\'')
  return page.encode(), '; '.join(policy)


def _hash(text: str) -> str:
  return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')


async def _page(request: Request) -> Response:
  page, policy = document()
  return Response(page, media_type='text/html; charset=utf-8', headers={
      'Content-Security-Policy': policy, 'Cache-Control': 'no-cache',
      'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer',
      'Permissions-Policy': 'microphone=(self), camera=(), geolocation=()'})


ROUTE = Route('/', _page)
