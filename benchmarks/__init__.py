"""The benchmarks: see docs/performance.md for what they measure and how."""
