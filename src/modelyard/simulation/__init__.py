"""The scheduler on a virtual clock, next to what others do, on the same trace and the same costs.

Laws of this package:
- Nothing here decides for `modelyard`: `world.py` drives the real `core.Scheduler`.
- Every policy pays the same costs and is held to the same laws by the same `Books`.
- The same input and seed give the same numbers on every machine: no clock, no global randomness.
"""
