"""Benchmarks: accuracy on held-out pairs over several seeds, and training speed. Figures go to docs/RESULTS.md."""
