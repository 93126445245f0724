"""ttt_jax."""
