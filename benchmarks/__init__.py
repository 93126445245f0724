"""Measurements with both sides in one run: a published way of doing it, and ours."""
