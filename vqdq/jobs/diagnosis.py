"""What commonly goes wrong with an installation, each with what to do about it.

A check returns None when all is well. It looks at the machine itself, so that a test can provoke
what it finds.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import InvalidRequirement, Requirement

from vqdq.errors import UserError
from vqdq.jobs.lock import Lock
from vqdq.models.pipelines import presets_folder

DISK_BYTES = 2_000_000_000
MEMORY_BYTES = 1_500_000_000  # what the page and a worker with the embedded model take
_DAY = 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something to mend.

    Attributes:
        check: which check found it.
        what: the fact; `remedy`: the next step.
        blocking: the studio does not start or work with it; else it is slower or somewhere else.
    """

    check: str
    what: str
    remedy: str
    blocking: bool = False

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


def faults(workspace: Path, port: int | None) -> tuple[Fault, ...]:
    """Returns everything that should be mended before the studio is started.

    Args:
        workspace: its folder, which need not exist yet.
        port: that it will use; None does not look.
    """
    place = existing(workspace)
    checks: tuple[Callable[[], Fault | None], ...] = (
        versions,
        torch_build,
        driver,
        lambda: writable(workspace),
        lambda: disk(place),
        memory,
        threads,
        compiled,
        proxies,
        lambda: None if port is None else free_port(port),
        lambda: lock(workspace),
        lambda: index(workspace),
        lambda: clock(workspace),
    )
    found = (check() for check in checks)
    return tuple(fault for fault in found if fault is not None)


def existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def versions(pins: Path | None = None) -> Fault | None:
    """A library is missing, or not of a version that was tested."""
    file = pins or presets_folder().parent / "requirements.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # installed without the checkout: the package's own metadata pins
    wrong: list[str] = []
    for line in lines:
        text = line.partition("#")[0].strip()
        try:
            wanted = Requirement(text) if text and not text.startswith("-") else None
        except InvalidRequirement:
            continue
        if wanted is None or (wanted.marker is not None and not wanted.marker.evaluate()):
            continue
        try:
            have = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(have.partition("+")[0], prereleases=True):
            wrong.append(f"{wanted.name} is {have}, tested is {wanted.specifier}")
    if not wrong:
        return None
    return Fault(
        check="versions",
        what=f"{'; '.join(wrong)}.",
        remedy="Run make app, or .venv/bin/pip install -r requirements.txt.",
        blocking=any(text.endswith("missing") for text in wrong),
    )


def torch_build() -> Fault | None:
    """There is a graphics card, and a torch that cannot use any."""
    import torch

    if not has_card() or torch.version.cuda is not None or torch.version.hip is not None:
        return None
    return Fault(
        check="torch",
        what=f"There is an NVIDIA card, and torch {torch.__version__} is built for the CPU alone.",
        remedy="Install the build for CUDA that pytorch.org names for your system.",
    )


def driver() -> Fault | None:
    """The driver does not fit the torch that was built for CUDA."""
    import torch

    if not has_card() or torch.version.cuda is None or torch.cuda.is_available():
        return None
    return Fault(
        check="driver",
        what=f"torch is built for CUDA {torch.version.cuda}, and the driver does not offer it.",
        remedy="Update the NVIDIA driver (nvidia-smi names what it offers), or install an older"
        " build of torch.",
    )


def has_card() -> bool:
    """Returns whether the system has an NVIDIA driver or its tool."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def writable(workspace: Path) -> Fault | None:
    """The workspace cannot be written."""
    place = existing(workspace)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return None
    return Fault(
        check="workspace",
        what=f"{place}: cannot be written.",
        remedy="Choose another --workspace, or change its owner.",
        blocking=True,
    )


def disk(place: Path) -> Fault | None:
    """Hardly any room is left."""
    free = shutil.disk_usage(place).free
    if free >= DISK_BYTES:
        return None
    return Fault(
        check="disk",
        what=f"The disk of the workspace has {free / 1e9:.2g} GB left.",
        remedy="Free some space (the Runs tab shows what takes it), or use another --workspace.",
    )


def memory() -> Fault | None:
    """Too little memory is free for the embedded model."""
    free = int(psutil.virtual_memory().available)
    if free >= MEMORY_BYTES:
        return None
    return Fault(
        check="memory",
        what=f"{free / 1e9:.2g} GB of memory are free; the studio alone takes about 1.5 GB.",
        remedy="Close other programs.",
    )


def threads() -> Fault | None:
    """More threads than there are cores: they wait for each other."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = torch.get_num_threads()
    if count <= (cores or 1):
        return None
    return Fault(
        check="threads",
        what=f"torch uses {count} threads on {cores} cores, which makes it slower.",
        remedy=f"Unset OMP_NUM_THREADS, or set it to {cores}.",
    )


def compiled() -> Fault | None:
    """Compiled kernels cannot be kept, so that every start compiles them again."""
    import vqdq.kernels

    chosen = os.environ.get("NUMBA_CACHE_DIR")
    place = Path(chosen) if chosen else Path(vqdq.kernels.__file__).with_name("__pycache__")
    if os.access(existing(place), os.W_OK | os.X_OK) and existing(place).is_dir():
        return None
    return Fault(
        check="kernels",
        what=f"{place}: compiled kernels cannot be kept there; every start takes longer.",
        remedy="Make it writable, or set NUMBA_CACHE_DIR to a folder that is.",
    )


def proxies(environment: Mapping[str, str] = os.environ) -> Fault | None:
    """A proxy is asked for this computer itself, which it cannot reach."""
    names = [name for name in environment if name.lower() in ("http_proxy", "all_proxy")]
    if not names or _bypassed(environment):
        return None
    return Fault(
        check="proxy",
        what=f"{names[0]} is set, and no_proxy does not except this computer.",
        remedy="Set no_proxy=localhost,127.0.0.1: programs that ask the studio go round the proxy.",
    )


def _bypassed(environment: Mapping[str, str]) -> bool:
    listed = next((environment[n] for n in ("no_proxy", "NO_PROXY") if environment.get(n)), "")
    known = {"no": listed}
    return all(
        urllib.request.proxy_bypass_environment(host, known)  # type: ignore[attr-defined]
        for host in ("127.0.0.1", "localhost")
    )


def free_port(port: int) -> Fault | None:
    """The port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return Fault(
                check="port",
                what=f"Port {port} cannot be used ({error}).",
                remedy="Is the studio running already? Start it with another --port.",
            )
    return None


def lock(workspace: Path) -> Fault | None:
    """A server or a worker that was left holds the workspace."""
    for name, who in (("server", "A studio"), ("worker", "A worker that lost its studio")):
        if not (workspace / f"{name}.lock").is_file():
            continue
        try:
            Lock.test(workspace, name)
        except UserError:
            pid = Lock.holder(workspace, name)
            return Fault(
                check="lock",
                what=f"{who} (process {pid}) uses this workspace.",
                remedy=f"Stop it (kill {pid}) if it should not, or use another --workspace.",
            )
    return None


def index(workspace: Path) -> Fault | None:
    """The history is from a newer program, or damaged."""
    from vqdq.jobs.index import NEWEST

    path = workspace / "index.sqlite"
    if not path.is_file():
        return None
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            found = int(db.execute("PRAGMA user_version").fetchone()[0])
            sound = db.execute("PRAGMA quick_check").fetchone()[0] == "ok"
        finally:
            db.close()
    except sqlite3.DatabaseError:
        found, sound = 0, False
    if not sound:
        return Fault(
            check="history",
            what="The index of the history is damaged.",
            remedy="It is made again from the runs' own files when the studio starts.",
        )
    if found <= NEWEST:
        return None
    return Fault(
        check="history",
        what=f"The history was written by a newer program (version {found}, known is {NEWEST}).",
        remedy="Use that program, or another --workspace.",
        blocking=True,
    )


def clock(workspace: Path) -> Fault | None:
    """Files come from the future: the clock was wrong, or is."""
    path = workspace / "index.sqlite"
    ahead = path.stat().st_mtime - time.time() if path.is_file() else 0.0
    if ahead < _DAY:
        return None
    return Fault(
        check="clock",
        what=f"The history is dated {ahead / _DAY:.0f} days from now: the clock is or was wrong.",
        remedy="Set the clock. Nothing is lost; the order of earlier runs may look odd.",
    )
