"""Big-little experts measured: `python -m bench.mobile` makes docs/results/mobile.md.

- `quality`: what the demo model says, on texts, when half of its experts decide (measured)
- `speed`: what passes cost at real expert sizes on this machine's CPU (measured, with a pattern imposed)
- `replayed`: what that is worth on a machine with a GPU that the experts do not fit (simulated)
- `drafts_replayed`: the same of the lossless mode
- `page`, `notes`, `plots`: what is shown, made of the figures in bench/results
"""
