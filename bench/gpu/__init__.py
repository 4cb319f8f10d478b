"""What bench/gpu_suite.py measures on a GPU. Each section runs in a process of its own.

section.py  a section, its time, its rows       suite.py        all sections, one after the other
card.py     the card, and what it can do        copies.py       host to device and back
kernels.py  expert kernels beside torch's own   models.py       a whole model, part of it cached
pytests.py  the tests that need a GPU           summary.py      the short table at the end
blobs.py    random experts, and their values    expert_step.py  one step of our kernels, and what it must give
rivals.py   what torch offers for the same      clock.py        times by CUDA events, eager and in graphs
"""
