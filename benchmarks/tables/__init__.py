"""The tables of the pages in docs/results, a module for each page: see benchmarks/pages.py."""
