"""Will it fit, and how fast can it be? Answered before a single chip is rented.

  vocabulary  the id space of a config whose data is not prepared yet
  sample      what a batch holds: masked pairs, padding, scored positions, from real rows
  estimate    memory and traffic from formulas: what a compiler will not be asked for
  hlo         what the compiled step says: collectives, memory traffic
  roofline    the least time a step can take on a chip, with its parts
  compile     the child process: the real train step, compiled for chips that are not here
  planner     one plan: asks the child, adds it all up
  table       a plan for people
"""
