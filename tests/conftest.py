"""Shared set-up. Being here also puts tests/ on sys.path (pytest's "prepend" mode), so that tests in the
folders below can import oracle.py, expert_layers.py and guarded_memory.py."""
