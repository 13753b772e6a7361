"""Timings as paired ratios within one run; never collected by pytest.

python -m tests.bench.step      what a loss adds to a training step
python -m tests.bench.engine    what the engine adds to a search
"""
