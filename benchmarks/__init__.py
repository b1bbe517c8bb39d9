"""One command per claim: `python -m benchmarks` measures, prints a table and writes JSON."""
