"""The decoder: Transformer, attention mask and kernels, KV cache, sharding, FLOP counts."""
