"""Engine processes of our own. They are started as `python -m`, and imported by nobody."""
