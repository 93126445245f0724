"""Sweeps: variations of one config, each trained as a run of its own, compared in one table.

A file under configs/sweeps/ defines the settings that its members change:

  from ttt_jax import sweep

  def get_sweep():
    return sweep.product({'optimizer.learning_rate': [1e-3, 3e-3]}, sweep.seeds(2))

  DIR/sweep.json          the members in order, with their overrides
  DIR/NAME/               a member's workdir, like that of any other run
  DIR/NAME/member.json    the state of the member
  DIR/sweep.csv           one line per member: its settings, state and metrics

Members that differ in the seed alone are a group: runs of one method. With ``evaluate``, groups are
compared by their scores (comparison.py); with ``reference``, each with the group of that name.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
import json
import os
import pathlib
import re
from typing import Any, NotRequired

from ttt_jax import config as config_lib
from ttt_jax.errors import UserError
from ttt_jax.storage import files, owned, schema, url_path

FILE, MEMBER = 'sweep.json', 'member.json'
WAITING, RUNNING, DONE, FAILED, STOPPED = 'waiting', 'running', 'done', 'failed', 'stopped'

# What `ttt-jax prepare` reads from a config: members that differ here need rows of their own.
PREPARED = ('vocab', 'codec', 'data')
NOT_PREPARED = ('path', 'stages', 'sst', 'shuffle', 'threads')  # of `data`: read by training

Point = dict[str, Any]  # config key -> value


class MemberEntry(schema.Kind):
  """A member in sweep.json."""
  name: schema.Name
  overrides: dict[str, Any]
  group: NotRequired[str]


class AboutFile(schema.Kind, total=False):
  """How a sweep was run, in sweep.json."""
  command: str
  version: str
  commit: str
  hardware: str


class PublishedFile(schema.Kind, total=False):
  """Numbers of a publication, in sweep.json; a row has a number per column."""
  columns: list[str]
  source: str
  rows: dict[str, list[float]]


class SweepFile(schema.Kind):
  """sweep.json."""
  evaluate: NotRequired[bool]
  reference: NotRequired[str]
  published: NotRequired[PublishedFile]
  about: NotRequired[AboutFile]
  members: list[MemberEntry]


class TrainSteps(schema.Kind, total=False):
  """The part of a member's settings that the table and the status read."""
  steps: schema.Count


class MemberSettings(schema.Kind, total=False):
  """A member's config; ``config.from_dict`` compares the rest."""
  train: TrainSteps


class MemberFile(schema.Kind, total=False):
  """member.json."""
  state: str
  error: str
  settings: MemberSettings
  started: float
  ended: float


# -- the sweep file ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What get_sweep() returns; it may also return the members alone."""
  members: Mapping[str, Point] | Sequence[Point]  # a list is named after its settings
  evaluate: bool = False                          # run `ttt-jax evaluate` after training
  reference: str = ''                             # group that the others are compared with
  # Numbers of a publication, shown beside the scores: 'columns', 'source', 'rows' {group: values}.
  published: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def named(self) -> Mapping[str, Point]:
    """The members by name, once ``load`` has named them."""
    assert isinstance(self.members, Mapping), 'members have no names yet'
    return self.members


def product(*axes: Mapping[str, Sequence[Any]] | Sequence[Point]) -> list[Point]:
  """All combinations of values.

  Args:
    axes: config key -> values, or points from another helper.

  Returns:
    Points; the last axis changes fastest.
  """
  expanded = []
  for axis in axes:
    if isinstance(axis, Mapping):
      expanded += [[{key: value} for value in values] for key, values in axis.items()]
    else:
      expanded.append(list(axis))
  return [_merged(points) for points in itertools.product(*expanded)]


def zip_(values: Mapping[str, Sequence[Any]]) -> list[Point]:
  """Values combined one by one: the first of each key, the second of each key, and so on.

  Raises:
    UserError: the lists have different lengths.
  """
  lengths = {key: len(found) for key, found in values.items()}
  if len(set(lengths.values())) > 1:
    raise UserError('sweep: zip_ needs lists of one length, but got '
                    + ', '.join(f'{key} with {n}' for key, n in lengths.items()) + '.')
  return [dict(zip(values, point)) for point in zip(*values.values())]


def seeds(count: int) -> list[Point]:
  """The same run with seeds 0 to ``count`` - 1."""
  return [{'seed': seed} for seed in range(count)]


def named(methods: Mapping[str, Point], *axes: Mapping[str, Sequence[Any]] | Sequence[Point]
          ) -> dict[str, Point]:
  """Every method at every point of the axes, as members named 'METHOD,KEY=VALUE'.

  Args:
    methods: name -> its settings.
    axes: as for ``product``; the methods change fastest, so that with seeds as the axis all methods
      have run once before one runs again.
  """
  out = {}
  for point in product(*axes):
    label = ','.join(f'{key.rpartition(".")[2]}={_word(value)}' for key, value in point.items())
    for name, method in methods.items():
      out[f'{name},{label}' if label else name] = _merged([method, point])
  return out


def group_of(name: str, point: Mapping[str, Any]) -> str:
  """The group of a member: its name without the seed."""
  if 'seed' not in point:
    return name
  seed = f'seed={_word(point["seed"])}'
  return ','.join(part for part in name.split(',') if part != seed) or 'base'


def _merged(points: Iterable[Point]) -> Point:
  out: Point = {}
  for point in points:
    twice = set(out) & set(point)
    if twice:
      raise UserError(f'sweep: product got {min(twice)} from two axes; name each key once.')
    out |= point
  return out


def load(path: str | os.PathLike) -> Sweep:
  """Read a sweep file.

  Returns:
    The sweep, with named members.

  Raises:
    UserError: no such file, no get_sweep, a wrong return value, two members of one name.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f'sweep file {path} does not exist.')
  found = config_lib.call(file, 'get_sweep', 'sweep file')
  if not isinstance(found, Sweep):
    found = Sweep(found)
  members = found.members if isinstance(found.members, Mapping) else _named(found.members, file)
  for name, point in members.items():
    if not isinstance(point, Mapping):
      raise UserError(f'sweep file {file}: member {name} is {point!r}; it must be a dict of config '
                      'keys and values.')
    if not re.fullmatch(r'[\w=,.+-]*[\w=+-]', name) or name.startswith('-'):
      raise UserError(f'sweep file {file}: {name!r} is not usable as a folder name; use letters, '
                      "digits and any of '_=,.+-'.")
  if not members:
    raise UserError(f'sweep file {file}: get_sweep() returns no members.')
  groups = {group_of(name, point): None for name, point in members.items()}
  if found.reference and found.reference not in groups:
    raise UserError(f'sweep file {file}: reference is {found.reference!r}; it must be one of the '
                    f'groups {", ".join(groups)}.')
  published = json.loads(json.dumps(found.published))
  if not schema.fits(published, PublishedFile) or any(
      len(row) != len(published.get('columns', ())) for row in published.get('rows', {}).values()):
    raise UserError(f"sweep file {file}: published is {schema.shown(published)}; it must have "
                    "'columns' (a list of titles), 'source' (text) and 'rows' (group -> a number "
                    'per column).')
  return dataclasses.replace(
      found, members={name: dict(point) for name, point in members.items()}, published=published)


def _named(points: Sequence[Point], file: pathlib.Path) -> dict[str, Point]:
  """Name each point after the settings that differ between points."""
  points = list(points)
  if not all(isinstance(point, Mapping) for point in points):
    raise UserError(f'sweep file {file}: get_sweep() must return a list of dicts, a dict of named '
                    'ones, or a sweep.Sweep.')
  keys = list(dict.fromkeys(key for point in points for key in point))
  varied = [key for key in keys if len({repr(point.get(key)) for point in points}) > 1] or keys
  last = [key.rpartition('.')[2] for key in varied]
  short = {key: key if last.count(word) > 1 else word for key, word in zip(varied, last)}
  names = [','.join(f'{short[key]}={_word(point[key])}' for key in varied if key in point) or 'base'
           for point in points]
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise UserError(f'sweep file {file}: two members are named {twice[0]}; return a dict that '
                    'names them.')
  return dict(zip(names, points))


def _word(value: Any) -> str:
  text = value if isinstance(value, str) else repr(value)
  return re.sub(r'[^\w.+-]+', '_', text).strip('_.') or '_'


# -- members ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Member:
  """One run of a sweep."""
  name: str
  overrides: dict[str, str]    # config key -> text, as on the command line
  config: config_lib.Config    # all of its settings

  def folder(self, workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir) / self.name


def members(sweep: Sweep, path: str | os.PathLike, overrides: Mapping[str, str]) -> list[Member]:
  """The members of a sweep; all settings are checked before anything runs.

  Args:
    sweep: from ``load``.
    path: the config file of all members.
    overrides: of all members, from the command line; a member's own take precedence.

  Raises:
    UserError: naming the member and what is wrong with its settings.
  """
  base = config_lib.load(path, dict(overrides))
  out = []
  for name, point in sweep.named.items():
    own = {key: value if isinstance(value, str) else repr(value) for key, value in point.items()}
    shared = {}
    if 'data.path' not in own:  # rows are prepared once, next to the members' workdirs
      data = pathlib.PurePath(base.data.path)
      shared['data.path'] = base.data.path if url_path.is_url(base.data.path) else str(
          data if data.is_absolute() else '..' / data)
    shared.setdefault('name', f'{base.name}-{name}')
    try:
      config = config_lib.load(path, {**overrides, **shared, **own})
    except UserError as error:
      raise UserError(f'sweep member {name}: {error}') from error
    if 'data.path' not in own:
      _check_rows(name, base, config)
    out.append(Member(name, {**shared, **own}, config))
  if base.data.path in sweep.named:
    raise UserError(f'sweep member {base.data.path} has the name of the prepared data '
                    '(config key data.path); choose another name.')
  return out


def _check_rows(name: str, base: config_lib.Config, config: config_lib.Config) -> None:
  """UserError if a member would use rows that were prepared with other settings."""
  for group in PREPARED:
    one, other = (config_lib.to_dict(getattr(c, group)) for c in (base, config))
    for key in one:
      if one[key] != other[key] and not (group == 'data' and key in NOT_PREPARED):
        raise UserError(
            f'sweep member {name} changes {group}.{key}, which needs rows of its own; run '
            '`ttt-jax prepare` with these settings in another folder, and set data.path of the '
            'member to it.')


def write_sweep(workdir: str | os.PathLike, sweep: Sweep, found: Sequence[Member],
                about: Mapping[str, str] | None = None) -> None:
  """Write DIR/sweep.json, and member.json of members that have none.

  Args:
    workdir, sweep, found: the folder, the sweep, and its members.
    about: the fields of ``AboutFile``.

  Raises:
    UserError: a member of the same name was started with other settings.
  """
  workdir = pathlib.Path(workdir)
  owned.check_json(workdir / FILE, 'members')
  owned.check_text(workdir / 'sweep.csv', 'member,state')
  for member in found:
    owned.check_json(member.folder(workdir) / MEMBER, 'state')
    known = read_state(member.folder(workdir))
    if 'settings' not in known:
      continue
    # from_dict, because a setting that is newer than the member takes its default.
    before = config_lib.from_dict(config_lib.Config, known['settings'])
    if before != member.config:
      old, new = (config_lib.flat(c) for c in (before, member.config))
      key = next(key for key in new if old.get(key) != new.get(key))
      was, now = schema.shown(old.get(key)), schema.shown(new.get(key))
      # Long values, such as lists of sources, may differ after what is shown.
      change = f'{key}={was}, but it is {now} now' if was != now else f'other {key} than now'
      raise UserError(f'sweep member {member.folder(workdir)} was started with {change}; use '
                      'another --workdir, or the original settings.')
  for member in found:
    if not (member.folder(workdir) / MEMBER).is_file():
      write_state(member.folder(workdir), state=WAITING,
                  settings=config_lib.to_dict(member.config))
  write(workdir / FILE, json.dumps({
      'evaluate': sweep.evaluate, 'reference': sweep.reference, 'about': dict(about or {}),
      'published': sweep.published,
      'members': [{'name': m.name, 'group': group_of(m.name, sweep.named[m.name]), 'overrides': {
          key: value for key, value in m.overrides.items() if key in sweep.named[m.name]}}
                  for m in found]}, indent=2) + '\n')


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """The fields of sweep.json.

  Raises:
    UserError: it is missing or damaged.
  """
  return schema.read(pathlib.Path(workdir) / FILE, SweepFile,
                     'the `ttt-jax sweep` command of this folder writes it again')


def read_members(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """'name', 'overrides' and, since version 0.2, 'group' of every member, in order; see ``read``."""
  return read(workdir)['members']


def groups(workdir: str | os.PathLike) -> dict[str, list[str]]:
  """Group -> the names of its members, in order; see ``read``."""
  out: dict[str, list[str]] = {}
  for entry in read_members(workdir):
    group = entry.get('group') or group_of(entry['name'], entry['overrides'])
    out.setdefault(group, []).append(entry['name'])
  return out


def read_state(folder: pathlib.Path) -> dict[str, Any]:
  """The fields of member.json; {} if there is none.

  Raises:
    UserError: it is damaged.
  """
  return schema.read(folder / MEMBER, MemberFile, 'move it away and run the `ttt-jax sweep` '
                     'command again, which resumes the member from its checkpoints', optional=True)


def write_state(folder: pathlib.Path, **values: Any) -> None:
  """Update fields of member.json: state, error, settings."""
  write(folder / MEMBER, json.dumps(read_state(folder) | values, indent=2) + '\n')


def write(path: pathlib.Path, text: str) -> None:
  """Replace a file atomically; several machines may do so at the same time."""
  with files.writing(path):
    files.make_folder(path.parent)
  files.write_text(path, text)


def is_sweep(workdir: str | os.PathLike) -> bool:
  """Whether ``workdir`` holds a sweep rather than a run."""
  return (pathlib.Path(workdir) / FILE).is_file()
