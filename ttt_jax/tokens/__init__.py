"""Token ids: the id space, tokenizers and the Batch of packed rows."""
