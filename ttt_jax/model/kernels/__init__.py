"""Attention over staircase ranges in O(T) memory: one form per kind of hardware."""
