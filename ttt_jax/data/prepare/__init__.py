"""`ttt-jax prepare`: sources to a prepared set, in four phases of parallel jobs."""
