"""Writes docs/config.md from the dataclasses in ttt_jax/config/settings.py.

  python docs/config_reference.py            # write docs/config.md
  python docs/config_reference.py --check    # exit with 1 if docs/config.md is out of date

The source is parsed, not imported, because the meaning of a setting is the comment beside its
field, and comments exist in the source alone:

  seq_len: int = 2048  # tokens per packed row [tokens]

A comment that ends in [...] names the unit. A field without a comment beside it takes the comment
lines directly above it. Other comment lines above a field, in the second case separated by an
empty line, become a sentence above a new table. The values that a setting accepts are read from
the checks in __post_init__.
"""

import argparse
import ast
import dataclasses
import io
import pathlib
import re
import sys
import tokenize

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = ROOT / 'ttt_jax' / 'config' / 'settings.py'
RANGES = ROOT / 'ttt_jax' / 'config' / 'ranges.py'
TARGET = ROOT / 'docs' / 'config.md'

# Dataclasses that are elements of a tuple: (class, prefix of their keys).
ELEMENTS = {'Source': 'data.sources[i]', 'Stage': 'data.stages[i]'}

HEAD = """\
# Configuration reference

<!-- Written by docs/config_reference.py from ttt_jax/config/settings.py. Do not edit. -->

Every setting, with its type, default, unit and meaning. A config file is a Python file with a
function `get_config()` that returns a `ml_collections.ConfigDict` or a dict; settings that it
leaves out have the defaults below. The files in `configs/` are examples.

Any setting can be changed on the command line, in one of two forms:

```bash
ttt-jax train --config configs/demo.py --workdir short --config.data.path=../demo/data \
--config.train.steps=500
ttt-jax train --config configs/demo.py --workdir short --config.data.path=../demo/data \
--config.train.steps 500
```

Values are read as Python literals, so `--config.train.tensorboard=False` is a boolean and
`--config.generate.top_p=0.9` is a float. An unknown key is an error that suggests the closest
known key; a value of the wrong type is an error that names the key.

The order of precedence, from lowest to highest: defaults, config file, hardware preset
(`--config.hardware=NAME`, see [Scaling](scaling.md#model-sizes-and-presets)), command line.
`prepare` and `train` write the resolved config to `WORKDIR/config.json`; commands that are called
without `--config` read it from there. Keys that were renamed in version 0.2 are listed in the
[change log](../CHANGELOG.md).
"""


@dataclasses.dataclass(frozen=True)
class Field:
  """One setting: all strings as they are printed, ``note`` stands above its row."""
  name: str
  type: str
  default: str
  meaning: str
  unit: str
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Group:
  """One dataclass."""
  name: str
  text: str
  fields: list[Field]


def comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
  """(trailing, alone): line number -> comment, beside code and on a line of its own."""
  trailing, alone = {}, {}
  lines = source.splitlines()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      row, column = token.start
      text = token.string.lstrip('#').strip()
      (trailing if lines[row - 1][:column].strip() else alone)[row] = text
  return trailing, alone


def block_above(alone: dict[int, str], row: int) -> tuple[str, int]:
  """(the comment lines that end just above line ``row``, the line above them)."""
  found, row = [], row - 1
  while row in alone:
    found.insert(0, alone[row])
    row -= 1
  return ' '.join(found), row


def choices(node: ast.ClassDef, constants: dict[str, ast.expr]) -> dict[str, list[str]]:
  """Field -> the values that __post_init__ accepts, where it accepts a list of them."""
  found: dict[str, list[str]] = {}

  def add(name: str, values: ast.expr) -> None:
    if isinstance(values, ast.Name):
      values = constants.get(values.id, values)
    if isinstance(values, ast.Tuple) and all(isinstance(v, ast.Constant) for v in values.elts):
      found[name] = [repr(v.value) for v in values.elts]

  for inner in ast.walk(node):
    if isinstance(inner, ast.Compare) and isinstance(inner.ops[0], ast.In) and isinstance(
        inner.left, ast.Attribute):                       # self.mode in ('hybrid', 'ar', 'nar')
      add(inner.left.attr, inner.comparators[0])
    elif isinstance(inner, ast.Call) and getattr(inner.func, 'id', '') == '_choice' and isinstance(
        inner.args[0], ast.Constant):                     # _choice('model.remat', ..., REMATS)
      add(inner.args[0].value.rsplit('.', 1)[-1], inner.args[2])
    elif isinstance(inner, ast.For) and isinstance(inner.iter, ast.Tuple):
      for pair in inner.iter.elts:                        # for key, known in (('rule', RULES), ...)
        if isinstance(pair, ast.Tuple) and len(pair.elts) == 2 and isinstance(
            pair.elts[0], ast.Constant) and isinstance(pair.elts[1], ast.Name):
          add(pair.elts[0].value, pair.elts[1])
  return found


def numbers() -> dict[str, tuple[str, str]]:
  """Name of a type in ranges.py -> ('int' or 'float', the comment beside it: its range)."""
  source = RANGES.read_text(encoding='utf-8')
  trailing, _ = comments(source)
  return {node.targets[0].id: (ast.unparse(node.value.slice.elts[0]), trailing[node.lineno])
          for node in ast.parse(source).body
          if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)}


def read(source: str) -> dict[str, Group]:
  """Class name -> its group, in the order of the file."""
  tree = ast.parse(source)
  trailing, alone = comments(source)
  lines = source.splitlines()
  constants = {node.targets[0].id: node.value for node in tree.body
               if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
  groups, ranges = {}, numbers()
  for node in tree.body:
    if not isinstance(node, ast.ClassDef):
      continue
    allowed, fields = choices(node, constants), []
    for item in node.body:
      if not isinstance(item, ast.AnnAssign):
        continue
      own = trailing.get(item.end_lineno, trailing.get(item.lineno, ''))
      above, row = block_above(alone, item.lineno)
      if not own:
        own, (above, _) = above, block_above(alone, row) if not lines[row - 1].strip() else ('', 0)
      meaning, unit = split_unit(own)
      note = above
      if item.target.id in allowed and not all(v in meaning for v in allowed[item.target.id]):
        values = ', '.join(f'`{value}`' for value in allowed[item.target.id])
        meaning = f'{meaning.rstrip(".")}. ' if meaning else ''
        meaning += f'One of {values}'
      written = ast.unparse(item.annotation)
      kind, values = ranges.get(written, (written, ''))
      if values and values not in meaning:
        meaning = f'{meaning.rstrip(".")}. {values[0].upper()}{values[1:]}'
      fields.append(Field(item.target.id, kind, default(item.value, constants, source), meaning,
                          unit, note))
    groups[node.name] = Group(node.name, ast.get_docstring(node) or '', fields)
  return groups


def split_unit(comment: str) -> tuple[str, str]:
  """'rows per step [rows]' -> ('rows per step', 'rows')."""
  match = re.fullmatch(r'(.*?)\s*\[([^\]]+)\]', comment)
  # An interval such as [0, 1] is no unit.
  return match.groups() if match and ',' not in match.group(2) else (comment, '')


def default(value: ast.expr | None, constants: dict[str, ast.expr], source: str) -> str:
  """As written in the source, so that 1e6 stays 1e6."""
  if value is None:
    return ''
  if isinstance(value, ast.Call) and any(k.arg == 'default' for k in value.keywords):
    value = next(k.value for k in value.keywords if k.arg == 'default')
  if isinstance(value, ast.Name):
    value = constants.get(value.id, value)
  return ast.get_source_segment(source, value) or ast.unparse(value)


def cell(text: str) -> str:
  return text.replace('|', '\\|')


def code(text: str) -> str:
  return f'`{cell(text)}`' if text else ''


def sentence(text: str) -> str:
  """Code marked as such, the first letter in upper case, and a full stop."""
  parts = re.split(r'(`[^`]*`)', text)
  for i in range(0, len(parts), 2):
    for pattern in (r"(?<!\w)('[^'`]*')",                      # quoted values
                    r'(?<![`/\w.])(ttt_jax/[\w/]+\.py)',       # files
                    r'(?<![`/\w.])((?:[a-z_]+\.)+[a-z_]+)(?![`/\w])'):  # keys
      parts[i] = ''.join(
          piece if j % 2 else re.sub(pattern, r'`\1`', piece)
          for j, piece in enumerate(re.split(r'(`[^`]*`)', parts[i])))
  text = ''.join(parts)
  text = text[:1].upper() + text[1:]
  return text if not text or text[-1] in '.:?' else text + '.'


def table(prefix: str, fields: list[Field], skip: set[str]) -> list[str]:
  """Tables of one group; a note starts a new one."""
  lines: list[str] = []
  started = False
  for field in fields:
    if field.type in skip:
      continue
    if field.note or not started:
      lines += ['', sentence(field.note)] if field.note else []
      lines += ['', '| key | type | default | unit | meaning |', '|---|---|---|---|---|']
      started = True
    key = f'{prefix}.{field.name}' if prefix else field.name
    lines.append(f'| {code(key)} | {code(field.type)} | {code(field.default)} | '
                 f'{cell(field.unit)} | {cell(sentence(field.meaning))} |')
  return lines


def render(groups: dict[str, Group]) -> str:
  """The page."""
  lines = [HEAD]
  top = groups['Config']
  lines += ['## Top level', *table('', top.fields, set(groups)), '']

  def section(prefix: str, group: Group, level: int) -> None:
    lines.append(f'{"#" * level} `{prefix}`')
    if group.text:
      lines.extend(['', sentence(' '.join(group.text.split()))])
    inner = [field for field in group.fields if field.type in groups]
    lines.extend([*table(prefix, group.fields, {field.type for field in inner}), ''])
    for field in group.fields:
      for name, elements in ELEMENTS.items():
        if f'[{name}' in field.type:
          section(elements, groups[name], level + 1)
    for field in inner:
      section(f'{prefix}.{field.name}', groups[field.type], level + 1)

  for field in top.fields:
    if field.type in groups:
      section(field.name, groups[field.type], 2)
  return '\n'.join(lines).rstrip() + '\n'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--check', action='store_true', help='compare instead of writing')
  parser.add_argument('--settings', type=pathlib.Path, default=SETTINGS)
  args = parser.parse_args()
  page = render(read(args.settings.read_text(encoding='utf-8')))
  if not args.check:
    TARGET.write_text(page, encoding='utf-8')
    return 0
  if TARGET.read_text(encoding='utf-8') != page:
    print('docs/config.md is out of date; run `python docs/config_reference.py`.', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
