"""Measure `serve` beside what answers for models elsewhere: `make bench-serving`."""
