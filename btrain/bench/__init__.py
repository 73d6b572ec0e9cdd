"""Benchmarks: each module runs as `python -m btrain.bench.NAME [--json]` and as `btrain bench NAME`."""
