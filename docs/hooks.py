"""MkDocs hooks: what makes the pages read the same on a code host and in the built site.

Formulas are written as on GitHub, $...$ and fenced ```math blocks. pymdownx.arithmatex marks them,
and latex2mathml turns them into MathML, which browsers draw themselves: no script, no font, no
network.

A | inside code in a table is written as \\| for code hosts; Python-Markdown wants it plain.

The theme's plugin for local files loads a script from a CDN; docs/javascripts/worker.js replaces it.

A link that leaves docs/, such as ../ttt_jax/train/step.py, works on a code host. In the built site
it leads to ``repo_url`` if mkdocs.yml has one, and is plain text otherwise. A link to a file that
does not exist is a warning, so that a strict build fails.
"""

import html
import logging
import pathlib
import re

from latex2mathml import converter

_LOG = logging.getLogger('mkdocs.hooks')
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_OUTSIDE = re.compile(r'\[([^\]\n]+)\]\(\.\./([^)\s#]+)(#[^)\s]*)?\)')


_CODE = re.compile(r'`[^`]*`')
_CDN = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim[^"]*"></script>')


def on_page_markdown(markdown, page, config, files):
  root = pathlib.Path(config.config_file_path).parent

  def link(match):
    text, path, anchor = match.groups()
    if not (root / path).exists():
      _LOG.warning('%s links to %s, which does not exist.', page.file.src_uri, path)
    if config.repo_url:
      return f'[{text}]({config.repo_url.rstrip("/")}/blob/main/{path}{anchor or ""})'
    return text

  lines = [_CODE.sub(lambda match: match.group().replace('\\|', '|'), line)
           if line.startswith('|') else line for line in _OUTSIDE.sub(link, markdown).split('\n')]
  return '\n'.join(lines)


def on_page_content(content, page, config, files):
  inline = lambda match: converter.convert(html.unescape(match.group(1)))
  block = lambda match: '<div class="formula">' + converter.convert(
      html.unescape(match.group(1)).strip(), display='block') + '</div>'
  return _INLINE.sub(inline, _BLOCK.sub(block, content))


def on_post_page(output, page, config):
  return _local(output, '../' * page.url.count('/'))


def on_post_template(output_content, template_name, config):
  return _local(output_content, '') if template_name.endswith('.html') else output_content


def _local(page, base):
  page = _CDN.sub(f'<script src="{base}javascripts/worker.js"></script>', page)
  assert 'src="http' not in page, 'a page loads something from the network'
  return page
