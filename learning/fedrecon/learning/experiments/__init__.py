"""Experiments as commands: the paper's tables and figures again, ours beside its own, by one fixed protocol."""
