"""How many connections this process may have."""

from __future__ import annotations

import sys

ENOUGH = 65_536
"""More is not asked for: engines inherit the limit, and where it is in the millions, programs that
walk through all descriptors that there may be take seconds to start."""


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one, up to ENOUGH; the limit that holds.

    The usual 1024 is for programs that use select(2). A system that does not allow more, or that
    knows no such limit, changes nothing.
    """
    if sys.platform == "win32":
        return ENOUGH
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return ENOUGH if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS grants less than it says
        return soft
    return allowed
