"""The control groups of this process, by which Linux and containers limit its processors and its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

OWN_CGROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cgroup_folders(controller: str, own_cgroups: str, mounted: Path) -> Iterator[Path]:
    """Yield the folders of the groups in `/proc/self/cgroup`, and of those above them.

    Inside a container the paths may be the host's; the container's own group is the mounted root then.

    Args:
        controller: `cpu` or `memory`.
        own_cgroups: the content of `/proc/self/cgroup`.
        mounted: the folder in which control groups are mounted.
    """
    for line in own_cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mounted / controller if controllers else mounted  # version 1 names its controllers
        group = root / path.strip("/")
        yield from (group, *(above for above in group.parents if above.is_relative_to(root)))
