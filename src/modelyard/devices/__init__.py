"""Probes: which devices there are and how much memory models may hold on each.

Laws of this file:
- Every kind of device that this platform can have gets a probe; whether there is one is the
  probe's to find out, each time it is asked.
"""

from __future__ import annotations

import sys

from modelyard.devices.amd import AmdProbe
from modelyard.devices.apple import AppleProbe
from modelyard.devices.base import Probe
from modelyard.devices.cpu import CpuProbe
from modelyard.devices.intel import IntelProbe
from modelyard.devices.nvidia import NvidiaProbe


def probes(*, platform: str = sys.platform) -> tuple[Probe, ...]:
    """A probe for each kind of device that `platform` (as in `sys.platform`) can have."""
    if platform == "darwin":
        return (CpuProbe(), AppleProbe())
    if platform.startswith("linux"):
        return (CpuProbe(), NvidiaProbe(), AmdProbe(), IntelProbe())
    return (CpuProbe(), NvidiaProbe())


__all__ = ["probes"]
