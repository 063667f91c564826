"""Benchmarks, one command each. Ratios measured side by side in one run, never timed tests."""
