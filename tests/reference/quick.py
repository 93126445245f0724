"""jit for tests: tiny arrays, so compiling costs far more than running."""

import functools

import jax

OPTIONS = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def jit(function, **settings):
  """jax.jit without the compiler's expensive passes; twice as fast to compile."""
  return jax.jit(function, compiler_options=OPTIONS, **settings)


def jit_with(**settings):
  """Decorator form: @quick.jit_with(static_argnums=1)."""
  return functools.partial(jit, **settings)
