"""A parser of compiled HLO text: instructions, and how often each computation runs.

XLA prints one instruction per line:

  %all-gather.5 = bf16[256,512]{1,0:T(8,128)} all-gather(%x), channel_id=5, replica_groups=...
  %while.60 = (s32[], f32[8]{0}) while(%tuple.1), condition=%cond, body=%body, ...

A layout ends in S(n) if the array is not in the device's main memory (1 = on-chip memory).
"""

import functools
import math
import re
from typing import Iterator, NamedTuple

_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4,
          's64': 8, 'u64': 8, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'c64': 8, 'c128': 16}
_ARRAY = re.compile(r'(\w+)\[([\d,<=]*)\](\{[^{}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
                     r'%([\w.\-]+)|branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_WORD = re.compile(r'([\w\-]+)\(')


class Array(NamedTuple):
  """One array of a (tuple) type: its bytes, and its memory space (0 = main memory)."""
  bytes: float
  space: int
  dims: tuple[int, ...]


class Instruction(NamedTuple):
  """Attributes: type and rest as text; rest is what follows the operands."""
  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  argument: str
  rest: str

  def called(self) -> list[str]:
    """Names of the computations that it runs or applies."""
    return [name for one, many in _CALLED.findall(self.rest)
            for name in ([one] if one else _NAME.findall(many))]

  def attribute(self, name: str) -> str:
    """The computation or word after ``name=``; '' without it."""
    match = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
    return match[1] if match else ''


class Computation:
  """Instructions by name, in order; the last one written as ROOT is the result."""

  def __init__(self, name: str):
    self.name = name
    self.instructions: dict[str, Instruction] = {}
    self.root: Instruction | None = None

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  def get(self, name: str) -> Instruction | None:
    """The instruction of that name, if this computation has it."""
    return self.instructions.get(name)

  def type_of(self, name: str) -> str:
    """The type of an instruction of this computation."""
    return self.instructions[name].type

  @functools.cached_property
  def parameters(self) -> list[Instruction]:
    """The parameter instructions, in order."""
    found = [i for i in self if i.opcode == 'parameter']
    return sorted(found, key=lambda i: int(i.argument))

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Name -> the instructions that use it."""
    out: dict[str, list[Instruction]] = {}
    for instruction in self:
      for operand in instruction.operands:
        out.setdefault(operand, []).append(instruction)
    return out


class Program:
  """All computations of a compiled program.

  Attributes:
    computations: by name.
    entry: where it starts.
    times: name -> executions per step; 0 for code that is only applied inside reductions.
      Of a conditional the branch with fewer instructions is assumed to run.
    guessed: names of loops whose trip count depends on the data.
  """

  def __init__(self, text: str, turns: float = 1.0):
    """Parse the text of a compiled program; ``turns``: assumed trip count of guessed loops."""
    self.computations: dict[str, Computation] = {}
    self.entry = ''
    current = None
    for line in text.splitlines():
      head = _HEAD.match(line) if line[:1] not in (' ', '}', '') else None
      if head:
        current = self.computations.setdefault(head[2], Computation(head[2]))
        self.entry = head[2] if head[1] else self.entry
      elif current is not None:
        _add(current, line)
    self.turns = turns
    assert self.entry, 'no ENTRY computation: this is not the text of a compiled program'
    self.guessed: list[str] = []
    self.times: dict[str, float] = dict.fromkeys(self.computations, 0.0)
    self._run(self.computations[self.entry], 1.0)

  def _run(self, computation: Computation, times: float) -> None:
    self.times[computation.name] += times
    for i in computation:
      if i.opcode == 'while':
        steps = self.trips(computation, i)
        self._run(self.computations[i.attribute('body')], times * steps)
      elif i.opcode == 'conditional':
        branches = [self.computations[name] for name in i.called()]
        self._run(min(branches, key=self._size), times)
      elif i.opcode in ('fusion', 'call', 'async-start', 'custom-call'):
        for name in i.called():
          self._run(self.computations[name], times)

  def _size(self, computation: Computation) -> int:
    """Number of instructions in a computation and in those that it calls."""
    return sum(1 + sum(self._size(self.computations[name]) for name in i.called())
               for i in computation)

  def trips(self, where: Computation, loop: Instruction) -> float:
    """Trip count of a while loop that counts up to a constant, else ``turns``."""
    known = _TRIPS.search(loop.rest)
    if known:
      return int(known[1])
    condition = self.computations[loop.attribute('condition')]
    compare = condition.root
    if compare is not None and compare.opcode == 'compare' and 'direction=LT' in compare.rest:
      first, end = (condition.get(name) for name in compare.operands)
      counter = _element(first)
      start = self._carried(where, loop, counter)
      stop = _constant(end) if _element(end) is None else self._carried(where, loop, _element(end))
      if counter is not None and start is not None and stop is not None:
        return max(stop - start, 0)
    self.guessed.append(loop.name)
    return self.turns

  def _carried(self, where: Computation, loop: Instruction, element: int | None) -> int | None:
    """The constant that a loop's state starts with."""
    state = where.get(loop.operands[0])
    if element is None or state is None or state.opcode != 'tuple':
      return None
    value = where.get(state.operands[element])
    while value is not None and value.opcode in ('copy', 'bitcast', 'convert'):
      value = where.get(value.operands[0])
    return _constant(value)


def _constant(instruction: Instruction | None) -> int | None:
  if instruction is None or instruction.opcode != 'constant':
    return None
  return int(instruction.argument) if re.fullmatch(r'-?\d+', instruction.argument) else None


def _element(instruction: Instruction | None) -> int | None:
  """n of get-tuple-element(..., index=n)."""
  if instruction is None or instruction.opcode != 'get-tuple-element':
    return None
  return int(instruction.attribute('index'))


def _add(computation: Computation, line: str) -> None:
  match = _LINE.match(line)
  if not match:
    return
  root, name, text = match.groups()
  if text.startswith('('):
    cut = _closing(text, 0) + 1
    kind, text = text[:cut], text[cut:].lstrip()
  else:
    kind, _, text = text.partition(' ')
  word = _WORD.match(text)
  if not word:
    return
  end = _closing(text, word.end() - 1)
  inside = text[word.end():end]
  instruction = Instruction(name, kind, word[1], tuple(_NAME.findall(inside)), inside,
                            text[end + 1:])
  computation.instructions[name] = instruction
  if root:
    computation.root = instruction


def _closing(text: str, start: int) -> int:
  """Position of the parenthesis that closes the one at ``start``."""
  depth = 0
  for at in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[at], 0)
    if depth == 0:
      return at
  return len(text)


def arrays(kind: str) -> list[Array]:
  """The arrays of a type, with tuples flattened; tokens and opaque types are skipped."""
  out = []
  for name, dims, layout in _ARRAY.findall(kind):
    size = 1 if name.startswith('f8') else _BYTES.get(name)
    if size is not None:
      shape = tuple(int(n.strip('<=')) for n in dims.split(',') if n)
      space = re.search(r'S\((\d+)\)', layout)
      out.append(Array(size * math.prod(shape), int(space[1]) if space else 0, shape))
  return out


def bytes_of(kind: str, space: int | None = None) -> float:
  """Bytes of a type; only of its arrays in one memory space, if ``space`` is given."""
  return sum(a.bytes for a in arrays(kind) if space is None or a.space == space)
