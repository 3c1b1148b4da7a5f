"""The moving parts: the one loop that owns the state, and the I/O that it performs."""
