"""The planner: whether a training step fits given chips, and how fast it can be at best.

  vocabulary      the id space of a config whose data is not prepared yet
  batch_stats     statistics of a batch: allowed pairs, padding, scored positions
  estimate        memory, traffic and collectives from formulas, without a compiler
  hlo             a compiled program as text, parsed
  collectives     communication of a compiled step
  memory_traffic  bytes to and from main memory of a compiled step
  roofline        a lower bound of the step time, by part
  aot_compile     the real train step, compiled ahead of time for absent TPUs
  child_process   runs the planner in a process with libtpu's environment
  planner         one plan, from all of the above
  advice          settings to change when a step does not fit
  summary         a plan as text
"""
