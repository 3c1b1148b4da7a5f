"""Trees of files as Linux shows graphics cards and processes.

Layouts: kernel documentation, gpu/amdgpu/driver-misc, gpu/amdgpu/thermal, gpu/drm-usage-stats,
ABI/testing/sysfs-driver-intel-xe-hwmon; i915_sysfs.c of Intel's packages; kfd_topology.c and
kfd_process.c for /sys/class/kfd.
"""

from __future__ import annotations

from pathlib import Path

import pytest


class Machine:
    """Writes files below `root`, which stands for `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc").mkdir()

    def write(self, path: str, content: object) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(f"{content}\n")
        return file

    def card(self, number: int, pci: str, vendor: str, device: dict[str, object]) -> None:
        """A card as /sys/class/drm/card<number>, with files below its `device`."""
        folder = f"sys/class/drm/card{number}/device"
        self.write(f"{folder}/vendor", vendor)
        self.write(f"{folder}/uevent", f"DRIVER=x\nPCI_CLASS=30000\nPCI_SLOT_NAME={pci}")
        for name, content in device.items():
            self.write(f"{folder}/{name}", content)

    def client(
        self, pid: int, fd: int, pci: str, client: int, sizes: dict[str, str], node: str = "128"
    ) -> None:
        """A process that has a card open and what the kernel tells of it."""
        links = self.root / f"proc/{pid}/fd"
        links.mkdir(parents=True, exist_ok=True)
        (links / str(fd)).symlink_to(f"/dev/dri/renderD{node}")
        lines = [f"drm-driver:\tx\ndrm-client-id:\t{client}\ndrm-pdev:\t{pci}"]
        lines += [f"{key}:\t{value}" for key, value in sizes.items()]
        self.write(f"proc/{pid}/fdinfo/{fd}", "pos:\t0\nflags:\t02100002\n" + "\n".join(lines))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
