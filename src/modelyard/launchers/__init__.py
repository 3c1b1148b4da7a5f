"""Where engine processes run, what they print, and how none of them is left behind."""
