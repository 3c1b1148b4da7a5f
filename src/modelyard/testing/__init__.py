"""What tests and benchmarks run against: real programs, not stand-ins inside our process."""
