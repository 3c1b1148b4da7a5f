"""Decisions: pure functions and state machines over the standard library.

Nothing here reads a clock, a file or a socket, logs, or draws a random number. Time comes in as
`now`, news comes in as events, and what should happen goes out as returned values.
"""
