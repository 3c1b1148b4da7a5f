"""What a server remembers when it is gone: what models really took, in
memory and in time, and how much they were asked; later the ledger.

Laws of this package:
- The store serves, it never decides: a server whose store cannot be opened goes on with
  `Store.in_memory()` and says so.
- Nothing here is awaited. Every call blocks; a server calls from one thread of its own, so that
  neither the event loop nor a request ever waits for a disk.
- Importing this package is cheap: SQLAlchemy is imported when a store is opened, alembic when its
  tables have to be made or changed.
- What is read from a database is checked like any other input.
"""

from modelyard.store.database import Store
from modelyard.store.demands import RememberedDemand
from modelyard.store.errors import StoreError
from modelyard.store.footprints import Footprint, FootprintKey, Measured, claim_mib

__all__ = [
    "Footprint",
    "FootprintKey",
    "Measured",
    "RememberedDemand",
    "Store",
    "StoreError",
    "claim_mib",
]
