"""Settings of the test process, made before anything imports JAX."""

import os
import signal

# A shell starts its background jobs with SIGINT ignored, and so would be all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# Eight virtual devices on the CPU, so that meshes can be tested anywhere.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Programs here are compiled for one small run each: quick compilation beats quick code.
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                             + f' --xla_force_host_platform_device_count=8 {QUICK}').strip()
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # as in cli.py: its threads mostly wait
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')

import hypothesis  # noqa: E402

# The same examples in every run: a failure in CI is a failure at the desk. No deadline,
# since the first example of a jitted function pays for its compilation.
hypothesis.settings.register_profile('ttt', derandomize=True, deadline=None)
hypothesis.settings.load_profile('ttt')
