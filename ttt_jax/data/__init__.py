"""Records to packed batches, on the host: rendering, packing, the prepared set, the loader."""
