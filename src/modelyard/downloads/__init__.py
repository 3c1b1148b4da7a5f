"""Models from hubs: what to fetch of a repository, fetching it, and taking it off the disk again.

Laws of this package:
- The transfer itself runs in a process of its own (`worker`), so that neither its interpreter lock
  nor its crash is felt by requests, and so that ending it is always possible.
- Nothing appears in a models folder before all of it has been fetched and checked; until then it
  is in a hidden folder beside the models, from which the next attempt goes on.
- Nothing outside the models folders is ever written or removed.
"""
