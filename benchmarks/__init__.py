"""The benchmarks; docs/performance.md says what they measure and how."""
