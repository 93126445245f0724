"""Imports point one way, and each kind of side effect has one home."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'ttt_jax'
# What an exported model carries along stands outside: it runs where ttt_jax is not installed.
CARRIED = sorted((ROOT / 'hf' / 'torch_code').glob('*.py'))
FILES = sorted(set(ROOT.rglob('*.py')) - set(CARRIED))

# Lower layers first; a unit (a folder or a module of ttt_jax) imports from its own layer
# and from those before it. A new unit needs a place here.
LAYERS = (
    ('errors',),
    ('storage', 'system'),
    ('config',),
    ('tokens',),
    ('audio',),
    ('data',),
    ('model',),
    ('objective',),
    ('train',),
    ('generate',),
    ('evaluate',),
    ('hf', 'plan'),
    ('api',),
    ('serve',),
    ('runs',),
    ('cli',),
)
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
DATA_SIDE = ('tokens', 'audio', 'data')
DEVICE_PACKAGES = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex'}


def unit_of(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def module_of(path):
  parts = path.relative_to(ROOT.parent).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(path):
  """Every dotted name a file imports, also inside functions: (name, line)."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: write imports in full'
      yield from ((f'{node.module}.{alias.name}', node.lineno) for alias in node.names)


def calls(path):
  """Dotted names of everything called or raised, and of what is assigned to: (name, line)."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), node.lineno
    elif isinstance(node, ast.Raise) and node.exc is not None:
      yield ast.unparse(node.exc).split('(')[0], node.lineno
    elif isinstance(node, ast.Assign):
      yield from ((ast.unparse(target).split('[')[0] + ' =', node.lineno)
                  for target in node.targets)


def name(path):
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize('path', [p for p in FILES if p != ROOT / '__init__.py'], ids=name)
def test_imports_point_down(path):
  own = unit_of(path)
  assert own in LAYER, f'{own} has no layer yet: give it one in LAYERS'
  for imported, line in imports(path):
    parts = imported.split('.')
    if parts[0] == 'ttt_jax':
      assert LAYER[parts[1]] <= LAYER[own], f'{name(path)}:{line}: {own} imports {parts[1]}'


@pytest.mark.parametrize('path', FILES, ids=name)
def test_only_tools_for_data_import_prepare(path):
  if unit_of(path) not in ('data', 'runs', 'cli'):
    assert not [found for found, _ in imports(path) if found.startswith('ttt_jax.data.prepare')]


def test_no_cycles():
  modules = {module_of(path): path for path in FILES}
  graph = {module: set() for module in modules}
  for module, path in modules.items():
    for imported, _ in imports(path):
      target = imported if imported in modules else imported.rpartition('.')[0]
      if target in modules and target != module:
        graph[module].add(target)
  done = set()

  def visit(module, trail):
    assert module not in trail, ' -> '.join((*trail[trail.index(module):], module))
    if module not in done:
      for target in sorted(graph[module]):
        visit(target, (*trail, module))
      done.add(module)

  for module in graph:
    visit(module, ())


@pytest.mark.parametrize('path', FILES, ids=name)
def test_packages_have_their_rooms(path):
  for imported, line in imports(path):
    package = imported.split('.')[0]
    where = f'{name(path)}:{line}'
    assert package != 'flax' or unit_of(path) == 'model' or 'audio/glm4' in name(path), (
        f'{where}: flax belongs to model/, or to the codec that is a network')
    assert (unit_of(path) not in DATA_SIDE or 'audio/glm4' in name(path)
            or package not in DEVICE_PACKAGES), f'{where}: the data side runs without {package}'
    assert package != 'piper', f'{where}: the voice is GPL and stays in tools/'
    assert package != 'argparse' or unit_of(path) in LAYERS[-1], f'{where}: flags belong to cli.py'


@pytest.mark.parametrize('path', [p for p in FILES if unit_of(p) not in LAYERS[-1]], ids=name)
def test_process_settings_only_in_cli(path):
  forbidden = {'sys.exit', 'exit', 'quit', 'os._exit', 'SystemExit', 'jax.config.update',
               'os.environ.setdefault', 'os.environ.update', 'os.putenv', 'os.environ =',
               'jax.distributed.initialize', 'logging.basicConfig'}
  if name(path) == 'audio/onnx_models.py':  # switches telemetry off for library users, too
    forbidden.remove('os.environ.update')
  if name(path) == 'generate/program_store.py':  # the cache is off for one compilation
    forbidden.remove('jax.config.update')
  found = [f'{name(path)}:{line}: {call}' for call, line in calls(path) if call in forbidden]
  assert not found


@pytest.mark.parametrize('path', CARRIED, ids=name)
def test_the_torch_code_stands_alone(path):
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.ImportFrom) and node.level:  # a file beside it
      assert node.level == 1 and (path.parent / f'{node.module}.py').exists(), node.module
    elif isinstance(node, ast.Import | ast.ImportFrom):
      names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
      packages = {found.split('.')[0] for found in names}
      assert packages <= sys.stdlib_module_names | {'torch', 'transformers', 'numpy'}, packages
