"""Measurements: `python -m benchmarks` lists them; results are in benchmarks/results.

benchmarks/harness.py says how to write one; `python -m benchmarks.pages` fills the pages of
docs/results.
"""
