"""Bytes that a step moves between a device and its main memory, from its compiled text.

Every instruction outside fusions reads its operands and writes its result once. A dynamic slice
reads only its result and a dynamic update writes only its update, also inside a fusion (a scan
reads one layer of the stacked weights, not all of them). On-chip memory does not count. A
kernel that reads a block twice is counted once, so this is a lower bound.
"""

from ttt_jax.plan.hlo import Computation, Instruction, Program, arrays, bytes_of

_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
         'call', 'after-all', 'partition-id', 'replica-id', 'iota', 'opt-barrier', 'async-done',
         'async-update', 'copy-done', 'domain', 'optimization-barrier', 'async-start'}
_SLICES = ('dynamic-slice', 'slice', 'gather')
_PASSED_ON = ('tuple', 'custom-call', 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
              'bitcast', 'opt-barrier')


def memory_bytes(program: Program) -> float:
  """Reads and writes of main memory per device and step."""
  inlined = {name for c in program.computations.values() for i in c
             if i.opcode in ('fusion', 'custom-call') or i.rest.find('to_apply=') >= 0
             for name in i.called()}
  return sum(program.times[name] * sum(_moved(program, computation, i) for i in computation)
             for name, computation in program.computations.items()
             if program.times[name] and name not in inlined)


def _moved(program: Program, computation: Computation, i: Instruction) -> float:
  if i.opcode in _FREE or i.opcode.endswith('-done'):
    return 0.0
  if i.opcode.endswith('-start'):  # its type is (source, result, ...)
    return bytes_of(i.type, 0)
  operand = lambda at: bytes_of(computation.type_of(i.operands[at]), 0)
  if i.opcode in _SLICES:
    return _slice_bytes(i.type, computation.type_of(i.operands[0])) + bytes_of(i.type, 0)
  if i.opcode == 'dynamic-update-slice':
    return 2 * operand(1)
  if i.opcode == 'fusion':
    return _fusion(computation, i, program.computations[i.called()[0]])
  return bytes_of(i.type, 0) + sum(
      operand(at) for at, name in enumerate(i.operands) if computation.get(name) is not None)


def _slice_bytes(part: str, array: str) -> float:
  """Bytes read for a part of an array; 0 if the array is not in main memory."""
  return bytes_of(part) if any(a.space == 0 for a in arrays(array)) else 0.0


def _fusion(computation: Computation, i: Instruction, inner: Computation) -> float:
  read = 0.0
  for parameter, name in zip(inner.parameters, i.operands):
    outside = computation.get(name)
    if outside is None or not bytes_of(outside.type, 0):
      continue
    read += _read(inner, parameter, bytes_of(outside.type, 0))
  return read + _written(inner, i)


def _read(inner: Computation, value: Instruction, size: float) -> float:
  """Bytes of a fusion's parameter, of ``size`` bytes, that its instructions read."""
  total = 0.0
  for user in inner.users.get(value.name, []):
    if user.opcode in _SLICES and user.operands[0] == value.name:
      total += bytes_of(user.type)
    elif user.opcode == 'dynamic-update-slice' and user.operands[0] == value.name:
      continue  # updated in place
    elif user.opcode == 'bitcast':
      total += _read(inner, user, size)
    elif user.opcode not in _PASSED_ON:
      return size
  return min(total, size)


def _written(inner: Computation, i: Instruction) -> float:
  """Bytes that a fusion writes; an update in place writes only the update."""
  root = inner.root
  if root is None:
    return bytes_of(i.type, 0)
  results = [inner.get(name) for name in root.operands] if root.opcode == 'tuple' else [root]
  outputs = arrays(i.type)
  if len(results) != len(outputs):
    return 0.0 if root.opcode == 'custom-call' else bytes_of(i.type, 0)
  total = 0.0
  for result, output in zip(results, outputs):
    while result is not None and result.opcode == 'bitcast':
      result = inner.get(result.operands[0])
    if output.space or result is None or result.opcode in ('parameter', 'custom-call'):
      continue
    if result.opcode == 'dynamic-update-slice':
      total += bytes_of(inner.type_of(result.operands[1]))
    else:
      total += output.bytes
  return total
