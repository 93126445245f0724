"""MkDocs hooks: what makes the pages read the same on a code host and in the built site.

Formulas are written as on GitHub, $...$ and fenced ```math blocks. pymdownx.arithmatex marks them,
and ziamath draws them as SVG inside the page, in the colour of the text: no script, no font, no
network.

| inside code in a table is written as \\| for code hosts; Python-Markdown wants it plain.

The theme's plugin for local files loads a script from a CDN; docs/javascripts/worker.js replaces
it.

A link that leaves docs/, such as ../ttt_jax/train/step.py, works on a code host. In the built site
it leads to ``repo_url`` if mkdocs.yml has one, and is plain text otherwise. A link to a file that
does not exist is a warning, so that a strict build fails. CHANGELOG.md and CONTRIBUTING.md become
pages of the site.
"""

import html
import logging
import pathlib
import re

from mkdocs.structure.files import File
import ziamath

_LOG = logging.getLogger('mkdocs.hooks')
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_OUTSIDE = re.compile(r'\[([^\]\n]+)\]\(\.\./([^)\s#]+)(#[^)\s]*)?\)')


_SIZE, _SCALE = 20, 1.08  # pixels that a formula is drawn with; of its em in the text's
_CODE = re.compile(r'`[^`]*`')
_CDN = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim[^"]*"></script>')


_PAGES = {'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md'}


def on_files(files, config):
  root = pathlib.Path(config.config_file_path).parent
  for source, target in _PAGES.items():
    text = (root / source).read_text(encoding='utf-8').replace('](docs/', '](')
    for other, page in _PAGES.items():
      text = text.replace(f']({other})', f']({page})')
    files.append(File.generated(config, target, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  root = pathlib.Path(config.config_file_path).parent

  def link(match):
    text, path, anchor = match.groups()
    if path in _PAGES:
      return f'[{text}]({_PAGES[path]}{anchor or ""})'
    if not (root / path).exists():
      _LOG.warning('%s links to %s, which does not exist.', page.file.src_uri, path)
    if config.repo_url:
      return f'[{text}]({config.repo_url.rstrip("/")}/blob/main/{path}{anchor or ""})'
    return text

  lines = [_CODE.sub(lambda match: match.group().replace('\\|', '|'), line)
           if line.startswith('|') else line for line in _OUTSIDE.sub(link, markdown).split('\n')]
  return '\n'.join(lines)


def on_page_content(content, page, config, files):
  inline = lambda match: formula(html.unescape(match.group(1)), inline=True)
  block = lambda match: '<div class="formula">' + formula(
      html.unescape(match.group(1)).strip(), inline=False) + '</div>'
  return _INLINE.sub(inline, _BLOCK.sub(block, content))


def formula(latex: str, inline: bool) -> str:
  """An <svg> whose size is in em and whose baseline is that of the text around it."""
  svg = ziamath.Latex(latex, size=_SIZE, color='currentColor', inline=inline).svg()
  head = re.match(r'<svg xmlns="[^"]*" width="([\d.]+)" height="([\d.]+)" '
                  r'viewBox="(\S+) (\S+) (\S+) (\S+)">', svg)
  width, height, _, top, _, _ = map(float, head.groups())
  # ziamath makes some stretched brackets endless; \\Big instead of \\left and \\right helps.
  assert height < 8 * _SIZE, f'this formula is drawn {height:.0f} pixels high: {latex}'
  em = lambda x: f'{x / _SIZE * _SCALE:.3f}em'
  return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(head.groups()[2:])}" '
          f'style="width:{em(width)};height:{em(height)};vertical-align:{em(-height - top)}" '
          f'role="img" aria-label="{html.escape(latex)}">{svg[head.end():]}')


def on_post_page(output, page, config):
  return _local(output, '../' * page.url.count('/'))


def on_post_template(output_content, template_name, config):
  return _local(output_content, '') if template_name.endswith('.html') else output_content


def _local(page, base):
  page = _CDN.sub(f'<script src="{base}javascripts/worker.js"></script>', page)
  found = re.search(r'(src|<link[^>]* href)="(https?:)?//[^"]*', page)
  assert not found, f'a page loads something from the network: {found.group()}'
  return page
