"""Microbenchmarks: timing, suites, comparison, report."""
