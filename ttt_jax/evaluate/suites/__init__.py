"""Benchmarks: `ttt-jax evaluate --suite NAME --data DIR`.

  suite.py      Suite, Item, Reply, Metric: what a benchmark defines
  registry.py   the suites by name
  reading.py    items of published files
  answering.py  items to replies, in batches of the engine
  results.py    files of results; numbers with intervals
  runner.py     a benchmark on one or more checkpoints
  table.py      the table for a terminal
"""
