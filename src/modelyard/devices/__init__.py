"""Probes: which devices there are and how much memory models may hold on each."""
