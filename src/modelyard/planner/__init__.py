"""Whether a model fits on some hardware, how it is to be run there, and what else could be done.

Laws of this package:
- Pure arithmetic over what the catalog read and what devices have: no plan starts or changes
  anything.
- Every recommendation has its reason, every number its formula, and what is an estimate says so.
- The memory of a plan is the catalog's estimate and nothing else, so that plan, claim and
  measurement can be compared term by term.
"""
