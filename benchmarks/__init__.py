"""Benchmarks of virtring; run them from the top of the repository."""
