"""Reading compiled programs: loops, collectives, memory traffic.

Programs for eight virtual devices of this machine are compiled here; what only a TPU's
compiler writes is kept as short texts in its format.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from ttt_jax.config import MeshConfig
from ttt_jax.model import sharding
from ttt_jax.plan import collectives, hlo, memory_traffic

LAYERS, WIDTH, ROWS = 3, 256, 64
WEIGHT = 4 * WIDTH * WIDTH  # bytes


@pytest.fixture(scope='module')
def fsdp_text():
  """Sum of squares of x after three layers, weights cut over 8 devices, with its gradient."""
  mesh = sharding.make_mesh(MeshConfig(fsdp=8), jax.devices()[:8])
  cut = NamedSharding(mesh, P(None, 'fsdp', None))
  weights = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=cut)
  x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P('fsdp')))

  def total(weights, x):
    def layer(x, w):
      w = jax.lax.with_sharding_constraint(w, P(None, None))
      return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), P('fsdp', None)), None
    return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, weights)[0] ** 2)
  with jax.set_mesh(mesh):
    step = jax.jit(jax.grad(total), out_shardings=cut)
    return step.lower(weights, x).compile().as_text()


def test_collectives_of_a_real_program(fsdp_text):
  program = hlo.Program(fsdp_text)
  assert not program.guessed
  found = [c for c in collectives.find(program) if c.bytes >= WEIGHT]
  gathers = [c for c in found if c.kind == 'all-gather']
  # A layer's weight is gathered forward and again backward, its gradient is summed once.
  assert [(c.bytes, c.times, len(c.group)) for c in gathers] == 2 * [(WEIGHT, LAYERS, 8)]
  sums = [c for c in found if c.kind in ('all-reduce', 'reduce-scatter')]
  assert [(c.bytes, c.times, c.group) for c in sums] == [(WEIGHT, LAYERS, tuple(range(8)))]
  assert collectives.by_kind(found)['all-gather'] == 2 * LAYERS * WEIGHT


def test_other_text_is_rejected():
  with pytest.raises(AssertionError, match='no ENTRY'):
    hlo.Program('not a program')


# -- what a TPU's compiler writes ------------------------------------------------------

LOOP = '''
%cond (s: (s32[], f32[8,16])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %s = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %three), direction=LT
}
'''

SCATTER = '''
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[8,16]) -> f32[4,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %ar = f32[8,16]{1,0} all-reduce(%p), channel_id=7, replica_groups={{0,1}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %own = f32[4,16]{1,0} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={4,16}
}
'''

BODY = '''
%body (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %own = f32[4,16]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %whole = f32[8,16]{1,0} all-gather(%own), channel_id=8, replica_groups={{0,1}}, dimensions={0}
  ROOT %next = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%i, %whole)
}
'''


def entry(start: str) -> str:
  return f'''
ENTRY %main (x: f32[8,16]) -> f32[8,16] {{
  %x = f32[8,16]{{1,0:T(8,128)}} parameter(0)
  %start = s32[]{{:T(128)}} {start}
  %state = (s32[]{{:T(128)}}, f32[8,16]{{1,0:T(8,128)}}) tuple(%start, %x)
  %loop = (s32[]{{:T(128)}}, f32[8,16]{{1,0:T(8,128)}}) while(%state), condition=%cond, body=%body
  ROOT %y = f32[8,16]{{1,0:T(8,128)}} get-tuple-element(%loop), index=1
}}
'''


@pytest.mark.parametrize('start, turns, times', [
    ('constant(0)', 1, 3), ('constant(1)', 1, 2), ('parameter(1)', 5, 5)])
def test_loops_count_from_their_start(start, turns, times):
  program = hlo.Program(LOOP + SCATTER + BODY + entry(start), turns)
  assert program.times['body'] == program.times['all-reduce-scatter.1'] == times
  assert program.guessed == (['loop'] if start.startswith('parameter') else [])
  assert [(c.kind, c.bytes, c.times) for c in collectives.find(program)] == [
      ('reduce-scatter', 512, times), ('all-gather', 512, times)]


def test_known_trip_counts_are_believed():
  text = entry('parameter(1)').replace(
      'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"36"}}')
  assert hlo.Program(LOOP + SCATTER + BODY + text).times['body'] == 36


def test_the_shorter_branch_is_taken_to_run():
  program = hlo.Program('''
%often (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8] parameter(0)
}

%seldom (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  ROOT %y = f32[8] all-gather(%x), replica_groups={{0,1}}, dimensions={0}
}

ENTRY %main (p: pred[], x: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %x = f32[8] parameter(1)
  ROOT %y = f32[8] conditional(%p, %x, %x), branch_computations={%seldom, %often}
}
''')
  assert (program.times['often'], program.times['seldom']) == (1, 0)
  assert not collectives.find(program)


DISGUISED = '''
%put (whole: bf16[64,16], part: bf16[16,16], at: u32[]) -> bf16[64,16] {
  %whole = bf16[64,16]{1,0} parameter(0)
  %part = bf16[16,16]{1,0} parameter(1)
  %at = u32[] parameter(2)
  ROOT %put = bf16[64,16]{1,0} dynamic-update-slice(%whole, %part, %at, %at)
}

%own (sum: bf16[64,16], at: u32[]) -> bf16[16,16] {
  %sum = bf16[64,16]{1,0} parameter(0)
  %at = u32[] parameter(1)
  ROOT %cut = bf16[16,16]{1,0} dynamic-slice(%sum, %at, %at), dynamic_slice_sizes={16,16}
}

ENTRY %main (part: bf16[16,16], grad: bf16[64,16], at: u32[]) -> (bf16[64,16], bf16[16,16]) {
  %part = bf16[16,16]{1,0} parameter(0)
  %grad = bf16[64,16]{1,0} parameter(1)
  %at = u32[] parameter(2)
  %zero = bf16[] constant(0)
  %blank = bf16[64,16]{1,0} broadcast(%zero), dimensions={}
  %padded = bf16[64,16]{1,0} fusion(%blank, %part, %at), kind=kLoop, calls=%put
  %gathered = bf16[64,16]{1,0} all-reduce(%padded), replica_groups=[1,4]<=[4], to_apply=%add
  %summed = bf16[64,16]{1,0} all-reduce(%grad), replica_groups=[1,4]<=[4], to_apply=%add
  %mine = bf16[16,16]{1,0} fusion(%summed, %at), kind=kLoop, calls=%own
  ROOT %out = (bf16[64,16]{1,0}, bf16[16,16]{1,0}) tuple(%gathered, %mine)
}
'''


def test_disguises_are_seen_through():
  found = collectives.find(hlo.Program(DISGUISED))
  assert [(c.kind, c.bytes, c.instead) for c in found] == [
      ('all-reduce', 2048, 'all-gather'), ('all-reduce', 2048, 'reduce-scatter')]
  first, second = collectives.warnings(found)
  assert 'zeros + all-reduce' in first and 'mesh.fsdp' in first
  assert 'reduce-scatter would need half' in second


def test_arrays_summed_together_are_looked_at_one_by_one():
  together = DISGUISED.replace(
      '  %summed = bf16[64,16]{1,0} all-reduce(%grad)',
      '  %pair = (bf16[64,16]{1,0}, bf16[]) all-reduce(%grad, %zero)').replace(
          '  %mine', '  %summed = bf16[64,16]{1,0} get-tuple-element(%pair), index=0\n'
          '  %scalar = bf16[] get-tuple-element(%pair), index=1\n'
          '  %used = bf16[] add(%scalar, %scalar)\n  %mine')
  found = collectives.find(hlo.Program(together))
  assert [(c.bytes, c.instead) for c in found] == [
      (2048, 'all-gather'), (2048, 'reduce-scatter'), (2, '')]


def test_an_honest_sum_is_no_disguise():
  honest = DISGUISED.replace(
      'fusion(%summed, %at), kind=kLoop, calls=%own', 'slice(%grad)').replace(
          'fusion(%blank, %part, %at), kind=kLoop, calls=%put', 'copy(%grad)')
  found = collectives.find(hlo.Program(honest))
  assert [c.instead for c in found] == ['', ''] and not collectives.warnings(found)


ASYNC = '''
%start_it (p: bf16[4,16]) -> (bf16[4,16], bf16[8,16]) {
  %p = bf16[4,16]{1,0} parameter(0)
  %ag.1 = bf16[8,16]{1,0} all-gather(%p), channel_id=5, replica_groups={{0,1}}, dimensions={0}
  ROOT %c = (bf16[4,16], bf16[8,16]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%go_on (p: bf16[4,16], q: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[4,16]{1,0} parameter(0)
  %q = bf16[8,16]{1,0} parameter(1)
  %ag.2 = bf16[8,16]{1,0} all-gather(%p), channel_id=5, replica_groups={{0,1}}, dimensions={0}
  ROOT %work = bf16[8,16]{1,0} multiply(%q, %ag.2)
}

ENTRY %main (x: bf16[4,16], y: bf16[8,16]) -> bf16[8,16] {
  %x = bf16[4,16]{1,0} parameter(0)
  %y = bf16[8,16]{1,0} parameter(1)
  %a = (bf16[4,16]{1,0}, bf16[8,16]{1,0}) fusion(%x), kind=kCustom, calls=%start_it
  %z = bf16[8,16]{1,0} fusion(%x, %y), kind=kLoop, calls=%go_on
  %cps = (bf16[8,16], bf16[8,16]) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  ROOT %cpd = bf16[8,16]{1,0} collective-permute-done(%cps)
}
'''


def test_one_collective_over_several_fusions_counts_once():
  found = collectives.find(hlo.Program(ASYNC))
  assert [(c.kind, c.bytes, c.times, c.asynchronous) for c in found] == [
      ('all-gather', 256, 1, True), ('collective-permute', 256, 1, True)]


def test_sums_between_slices_are_messages_to_the_host():
  found = collectives.find(hlo.Program('''
ENTRY %main (x: bf16[1024,8]) -> token[] {
  %x = bf16[1024,8]{1,0} parameter(0)
  %t = token[] after-all()
  %send = (bf16[1024,8], u32[], token[]) send(%x, %t), channel_id=2, handler="xla_megascale_runtime"
  ROOT %done = token[] send-done(%send), channel_id=2
}
'''), slices=4, devices=64)
  assert [(c.kind, c.bytes, c.group) for c in found] == [('all-reduce', 16384, (0, 16, 32, 48))]


@pytest.mark.parametrize('rest, group', [
    ('replica_groups={{0,2},{1,3}}, x=1', (0, 2)),
    ('replica_groups=[2,4]<=[8], x=1', (0, 1, 2, 3)),
    ('replica_groups=[4,2]<=[2,4]T(1,0), x=1', (0, 4)),
    ("replica_groups=mesh['a'=4,'b'=1] {'a'}, x=1", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x=1", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x=1", tuple(range(8))),
    ("replica_groups=mesh['a'=16,'b'=1,'c'=4], device_ids=([4,16]T(1,0)) {'c'}, x=1",
     (0, 16, 32, 48)),
    ("replica_groups=mesh['a'=16,'b'=1,'c'=4], device_ids=([4,16]T(1,0)) {'a'}, x=1",
     tuple(range(16))),
    ("replica_groups=mesh['a'=8] {'a':(2)2}, x=1", (0, 2)),
    ('source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, x=1', (0, 1, 2, 3)),
    ('source_target_pairs={{0,3},{1,2}}, x=1', (0, 3)),
])
def test_groups_in_every_notation(rest, group):
  assert collectives.groups(', channel_id=1, ' + rest) == group


# -- memory traffic --------------------------------------------------------------------


def test_types():
  kind = '(f32[3,64]{1,0:T(8,128)S(1)}, /*index=1*/bf16[5]{0}, u32[], token[], s4[8]{0})'
  assert [a.bytes for a in hlo.arrays(kind)] == [768, 10, 4, 4]
  assert hlo.bytes_of(kind, 0) == 18 and hlo.bytes_of(kind, 1) == 768


def test_traffic_of_a_real_program():
  # A chain of two products that cannot be fused: each reads two arrays and writes one.
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  text = jax.jit(lambda a, b: (a @ b) @ b).lower(x, x).compile().as_text()
  assert memory_traffic.memory_bytes(hlo.Program(text)) == 2 * 3 * 4 * 64 * 64


def test_a_loop_reads_one_slice_at_a_time():
  def cumulative(stack):
    return jax.lax.scan(lambda total, x: (total + x, None), jnp.zeros((1024,)), stack)[0]
  text = jax.jit(cumulative).lower(jax.ShapeDtypeStruct((50, 1024), jnp.float32)).compile(
      ).as_text()
  moved = memory_traffic.memory_bytes(hlo.Program(text))
  stack = 4 * 50 * 1024
  # At least the slice, the total and the new total at each step; never the complete stack.
  assert 3 * stack <= moved <= 8 * stack


def test_on_chip_memory_is_free():
  program = hlo.Program('''
ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %cs = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%x)
  %cd = f32[256]{0:S(1)} copy-done(%cs)
  %y = f32[256]{0:S(1)} negate(%cd)
  ROOT %z = f32[256]{0} negate(%y)
}
''')
  assert memory_traffic.memory_bytes(program) == 2 * 1024  # fetched once, written once


def test_updates_in_place_write_their_part():
  program = hlo.Program('''
%put (whole: f32[100,8], part: f32[1,8], at: s32[]) -> f32[100,8] {
  %whole = f32[100,8]{1,0} parameter(0)
  %part = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %twice = f32[1,8]{1,0} add(%part, %part)
  ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%whole, %twice, %at, %at)
}

ENTRY %main (whole: f32[100,8], part: f32[1,8], at: s32[]) -> f32[100,8] {
  %whole = f32[100,8]{1,0} parameter(0)
  %part = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %new = f32[100,8]{1,0} fusion(%whole, %part, %at), kind=kLoop, calls=%put
}
''')
  assert memory_traffic.memory_bytes(program) == 32 + 4 + 32
