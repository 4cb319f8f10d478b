"""Benchmarks of moerun: `python -m bench.run`. They report, and never judge.

run.py        the command line        layers.py    layers of known models, beside torch
shapes.py     whose layers            kernels.py   every instruction set and weight format; Python's overhead
workload.py   weights and routing     generate.py  a whole model, beside transformers
baselines.py  what others offer       rounds.py    the method: interleaved rounds and medians of ratios
limits.py     what the machine can do report.py    machine, commit, rows, JSON
table.py      the printer             readme_table.py  a saved result as Markdown

On a GPU: `python -m bench.gpu_suite` (gpu_suite.py, gpu/).
"""
