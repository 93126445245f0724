"""MkDocs hooks: formulas become MathML, and links to files of the repository are checked.

Formulas are written as on GitHub, $...$ and fenced ```math blocks. pymdownx.arithmatex marks them,
and latex2mathml turns them into MathML, which browsers draw themselves: no script, no font, no
network.

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


def on_page_markdown(markdown, page, config, files):
  root = pathlib.Path(config.config_file_path).parent

  def link(match):
    text, path, anchor = match.groups()
    if not (root / path).exists():
      _LOG.warning('%s links to %s, which does not exist.', page.file.src_uri, path)
    if config.repo_url:
      return f'[{text}]({config.repo_url.rstrip("/")}/blob/main/{path}{anchor or ""})'
    return text

  return _OUTSIDE.sub(link, markdown)


def on_page_content(content, page, config, files):
  inline = lambda match: converter.convert(html.unescape(match.group(1)))
  block = lambda match: '<div class="formula">' + converter.convert(
      html.unescape(match.group(1)).strip(), display='block') + '</div>'
  return _INLINE.sub(inline, _BLOCK.sub(block, content))
