"""A slow, plain implementation of the method, written from its description alone."""
