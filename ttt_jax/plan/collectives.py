"""The collectives of one step of a compiled program.

XLA expresses some collectives by others. They are counted as follows:

  all-reduce inside an "all-reduce-scatter" fusion       a reduce-scatter
  all-reduce of zeros with the device's part written in  an all-reduce; `instead` is 'all-gather',
                                                         which would need half the traffic
  all-reduce of which only the device's part is used     an all-reduce; `instead` is
                                                         'reduce-scatter', likewise
  fusions that start, continue and end a collective      one asynchronous collective
"""

import re
from typing import NamedTuple

import numpy as np

from ttt_jax.plan.hlo import Computation, Instruction, Program, arrays, bytes_of

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
_KIND = re.compile(rf'({"|".join(KINDS)}|ragged-all-to-all)(-start)?$')
_TRIVIAL = 1024  # bytes; smaller wasteful collectives are not reported
_PASS = ('bitcast', 'copy', 'convert', 'get-tuple-element', 'copy-start', 'copy-done', 'reshape',
         'tuple', 'transpose')


class Collective(NamedTuple):
  """One collective operation of a step.

  Attributes:
    kind: one of KINDS.
    bytes: of the complete array: the output of a gather, the input of a reduction.
    times: executions per step.
    group: the first group of devices, as positions in the mesh.
    asynchronous: whether it overlaps with computation.
    instead: the collective that would do with half the traffic, 'all-gather' or
      'reduce-scatter'; '' if there is none.
    where: JAX's name of the operation.
  """
  kind: str
  bytes: float
  times: float
  group: tuple[int, ...]
  asynchronous: bool
  instead: str
  where: str


def find(program: Program, slices: int = 1, devices: int = 1) -> list[Collective]:
  """All collectives of a step among more than one device.

  Args:
    program: of one device.
    slices, devices: number of each in the mesh. Sums between TPU slices are sends to the host in
      XLA's program; they are returned as all-reduces among the first devices of the slices.
  """
  homes = _homes(program)
  out: dict[object, Collective] = {}
  for name, computation in program.computations.items():
    for i in computation if program.times[name] else ():
      if i.opcode == 'send' and 'megascale' in i.rest:
        size = arrays(i.type)[0].bytes
        parts = [Collective('all-reduce', size, program.times[name],
                            tuple(range(0, devices, devices // slices)), True, '', _where(i))]
      else:
        parts = _collectives(program, computation, i, name in homes)
      for number, one in enumerate(parts):
        if len(one.group) > 1:
          # Fusions that start, continue and end a collective all contain it, with one channel.
          key = (homes.get(name, name), i.opcode, i.attribute('channel_id') or i.name, number)
          both = one.asynchronous or (key in out and out[key].asynchronous)
          out[key] = out.get(key, one)._replace(asynchronous=both)
  return list(out.values())


def _homes(program: Program) -> dict[str, str]:
  """Name of a fused computation -> name of the computation that has the fusion."""
  parent = {called: name for name, c in program.computations.items() for i in c
            if i.opcode in ('fusion', 'custom-call', 'async-start') for called in i.called()}

  def home(name):
    return home(parent[name]) if name in parent else name
  return {name: home(name) for name in parent}


def _collectives(program: Program, computation: Computation, i: Instruction,
                 fused: bool) -> list[Collective]:
  """One Collective per array of a collective instruction; [] for other instructions."""
  match = _KIND.match(i.opcode)
  if not match:
    return []
  kind = match[1].removeprefix('ragged-')
  waits = not match[2] and not any(
      other.opcode == 'custom-call' and 'AsyncCollective' in other.rest for other in computation)
  one = Collective(kind, _array_bytes(computation, i), program.times[computation.name],
                   groups(i.rest), not waits, '', _where(i))
  if kind != 'all-reduce':
    return [one]
  out = []
  for at, operand in enumerate(i.operands):
    size = bytes_of(computation.type_of(operand))
    names = [i.name] if len(i.operands) == 1 else [
        user.name for user in computation.users.get(i.name, ())
        if user.opcode != 'get-tuple-element' or user.attribute('index') == str(at)]
    sliced = bool(names) and all(_sliced(program, computation, name) for name in names)
    if sliced and fused:
      out.append(one._replace(bytes=size, kind='reduce-scatter'))
    else:
      gathers = _padded_with_zeros(program, computation, operand)
      out.append(one._replace(bytes=size, instead='all-gather' if gathers else
                              'reduce-scatter' if sliced else ''))
  return out


def by_kind(found: list[Collective]) -> dict[str, float]:
  """Kind -> bytes per device and step."""
  out: dict[str, float] = {}
  for one in found:
    out[one.kind] = out.get(one.kind, 0.0) + one.bytes * one.times
  return {kind: out[kind] for kind in KINDS if kind in out}


def warnings(found: list[Collective]) -> list[str]:
  """One sentence per kind of wasteful collective."""
  out = []
  for stands_for, sentence in (
      ('all-gather', '{n} all-gathers compile to zeros + all-reduce ({gb:.2f} GB per step and '
       'device, at twice the traffic and without overlap): use fewer devices on mesh.fsdp '
       'and more on mesh.data.'),
      ('reduce-scatter', '{n} all-reduces ({gb:.2f} GB per step and device) compute sums of '
       'which each device uses only its part: a reduce-scatter would need half the traffic.')):
    wasted = [c for c in found if c.instead == stands_for and c.bytes > _TRIVIAL]
    if wasted:
      out.append(sentence.format(n=len(wasted), gb=sum(c.bytes * c.times for c in wasted) / 1e9))
  return out


def groups(rest: str) -> tuple[int, ...]:
  """The first group of devices of a collective, from its attributes.

  Understands {{0,1},{2,3}}, [2,4]<=[8], [4,2]<=[2,4]T(1,0), mesh['a'=2,'b'=4] {'b'} with or
  without device_ids=([..]T(..)), and source_target_pairs.
  """
  pairs = re.search(r'source_target_pairs=\{\{([\d,{}]*)\}\}', rest)
  if pairs:
    return _cycle([(int(a), int(b)) for a, b in (
        pair.split(',') for pair in pairs[1].split('},{'))])
  text = rest[rest.find('replica_groups=') + len('replica_groups='):]
  mesh = re.match(r"mesh\[([^\]]*)\](?:,? *device_ids=\((\[[^)]*(?:\([^)]*\))?)\))? *\{([^}]*)\}",
                  text)
  if mesh:
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    devices = _iota(mesh[2], tuple(sizes.values())) if mesh[2] else np.arange(
        int(np.prod(list(sizes.values()))))
    return _along(devices, sizes, mesh[3])
  iota = re.match(r'\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', text)
  if iota:
    return tuple(_iota(iota[2], _ints(iota[1]))[0].ravel().tolist())
  listed = re.match(r'\{\{([\d,]*)\}', text)
  return _ints(listed[1]) if listed else (0,)


def _ints(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n)


def _iota(text: str, shape: tuple[int, ...]) -> np.ndarray:
  """'[4,16]T(1,0)': 0, 1, 2, ... in the first shape, transposed, then in ``shape``."""
  sizes, _, order = text.partition('T')
  sizes = _ints(sizes.strip('[]'))
  ids = np.arange(int(np.prod(sizes))).reshape(sizes)
  if order:
    ids = ids.transpose(_ints(order.strip('()')))
  return ids.reshape(shape)


def _along(devices: np.ndarray, sizes: dict[str, int], axes: str) -> tuple[int, ...]:
  """Devices that differ along the named axes only. 'a':(2)4 is a sub-axis: the second digit of
  the axis' index written in mixed radix (2, 4, ...)."""
  shape, moving = [], []
  wanted = {name: (int(before or 1), int(size)) if size else (1, sizes[name]) for name, before, size
            in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
  for name, size in sizes.items():
    before, part = wanted.get(name, (size, 1))
    shape += [before, part, size // (before * part)]
    moving += [False, True, False]
  grid = devices.reshape(shape)
  return tuple(grid[tuple(slice(None) if move else 0 for move in moving)].ravel().tolist())


def _cycle(pairs: list[tuple[int, int]]) -> tuple[int, ...]:
  """The cycle of a permutation that contains its first device."""
  linked, following = [pairs[0][0]], dict(pairs)
  while linked[-1] in following and following[linked[-1]] not in linked:
    linked.append(following[linked[-1]])
  return tuple(linked)


def _array_bytes(computation: Computation, i: Instruction) -> float:
  """Bytes of the complete array: the larger of input and output. The type of a -start operation is
  (input, output, ...)."""
  given = sum(bytes_of(computation.type_of(name)) for name in i.operands
              if computation.get(name) is not None)
  if i.opcode.endswith('-start'):
    sizes = [a.bytes for a in arrays(i.type)]
    return max(given, max(sizes, default=0.0))
  return max(given, bytes_of(i.type))


def _where(i: Instruction) -> str:
  match = re.search(r'op_name="([^"]*)"', i.rest)
  return match[1] if match else i.name


def _sliced(program: Program, computation: Computation, name: str) -> bool:
  """Whether every user of a value takes a dynamic slice of it, also inside fusions."""
  users = computation.users.get(name, [])
  for user in users:
    if user.opcode == 'dynamic-slice' and user.operands[0] == name:
      continue
    if user.opcode in _PASS and user is not computation.root:
      if _sliced(program, computation, user.name):
        continue
      return False
    if user.opcode == 'fusion':
      inner = program.computations[user.called()[0]]
      inside = [inner.parameters[at].name for at, n in enumerate(user.operands) if n == name]
      if all(_sliced(program, inner, n) for n in inside):
        continue
    return False
  return bool(users)


def _padded_with_zeros(program: Program, computation: Computation, name: str) -> bool:
  """Whether a value is a constant array into which a part was written."""
  value = _origin(computation, name)
  if value is None or value.opcode not in ('dynamic-update-slice', 'fusion'):
    return False
  if value.opcode == 'dynamic-update-slice':
    return _blank(computation, value.operands[0])
  inner = program.computations[value.called()[0]]
  root = _origin(inner, inner.root.name) if inner.root is not None else None
  if root is None or root.opcode != 'dynamic-update-slice':
    return False
  target = inner.get(root.operands[0])
  if target is not None and target.opcode == 'parameter':
    return _blank(computation, value.operands[int(target.argument)])
  return _blank(inner, root.operands[0])


def _origin(computation: Computation, name: str) -> Instruction | None:
  """The instruction whose value this is, through copies, casts and reshapes."""
  value = computation.get(name)
  while value is not None and value.opcode in ('bitcast', 'copy', 'convert', 'reshape'):
    value = computation.get(value.operands[0])
  return value


def _blank(computation: Computation, name: str) -> bool:
  """Whether all elements of a value are one constant."""
  value = computation.get(name)
  return value is not None and value.opcode in ('broadcast', 'constant')
