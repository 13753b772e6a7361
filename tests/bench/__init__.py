"""Timings as paired ratios within one run; never collected by pytest.

python -m tests.bench.step      what a loss adds to a training step
python -m tests.bench.engine    what the engine adds to a search
python -m tests.bench.loss      a compiled loss against the same by hand
python -m tests.bench.score     one DisWOT score against a bare forward pass
python -m tests.bench.proxy     whether short trainings rank losses as long ones do
python -m tests.bench.funnel    the gates: what they cost, what they refuse, against stock DEAP
python -m tests.bench.efficiency  what the funnel saves, from finished runs
python -m tests.bench.tabular   whole searches on published tables
"""
