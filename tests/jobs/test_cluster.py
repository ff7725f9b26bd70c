"""Sweeps on a real Ray cluster of three node processes on the loopback; a worker and a node die."""

from __future__ import annotations

import contextlib
import os
import time

import psutil
import pytest

from tests.jobs.test_sweep import RECIPES, asked
from tests.models import tiny
from vqdq.errors import UserError
from vqdq.jobs import sweep, sweep_run
from vqdq.jobs.cluster import RayEngine
from vqdq.jobs.sweep_store import Store

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")


AGENTS = ("ray::Dash", "ray::Runtime", "ray::IDLE")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("cluster") / "tiny")


def start(nodes):
    """So many computers of one core each, as far as Ray can tell, on the loopback."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # names and listens on the loopback
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
    head = {"include_dashboard": False, "_system_config": quick}
    made = Cluster(initialize_head=True, head_node_args=node | head)
    for _ in range(nodes - 1):
        made.add_node(**node, wait=False)
    return made


def children():
    """Process ids of all that lives below this process."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found


def gone(before):
    """Waits until nothing lives that did not before."""
    deadline = time.monotonic() + 15
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children() <= before


@pytest.fixture(scope="module")
def cluster():
    before = children()
    made = start(nodes=3)
    yield made
    made.shutdown()
    gone(before)


def workers_of(process):
    """The processes below one that do a unit now."""
    return [
        child
        for child in process.children(recursive=True)
        if child.name().startswith("ray::") and not child.name().startswith(AGENTS)
    ]


def kill_a_worker():
    busy = workers_of(psutil.Process())
    if busy:
        busy[0].kill()
    return bool(busy)


def kill_a_computer(cluster):
    """Ends a node with everything on it, but not the one that this driver hangs on."""
    import ray

    mine = ray.get_runtime_context().get_node_id()
    node = next(
        n for n in cluster.list_all_nodes() if n.node_id != mine and n is not cluster.head_node
    )
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in (*raylet.children(recursive=True), raylet):
        process.kill()
    return True


def drive(wanted, store, address, report):
    """A driver's life: connects, plans, runs."""
    engine = RayEngine(store, address=address)
    plan = sweep_run.planned(wanted.pictures, engine, store, metrics=wanted.metrics)
    return plan, sweep.drive(plan, engine, report=report)


def harming(store, steps):
    """A report that takes each step once so many results are there, until it succeeds."""

    def harm(_event):
        if steps and len(store.known()) >= steps[0][0] and steps[0][1]():
            steps.pop(0)

    return harm


def check_whole(wanted, there, here):
    """Nothing lost, nothing twice, and every bit as one process makes it."""
    local = sweep.LocalEngine(here)
    alone = sweep_run.planned(wanted.pictures, local, here, metrics=wanted.metrics)
    assert sweep.drive(alone, local).finished
    assert there.known() == here.known()  # nothing lost, nothing more
    assert there.again() == []  # nothing twice: each result was finished by one execution
    makers: set[str] = set()
    for name in there.known():
        mine, theirs = here.receipt(name), there.receipt(name)
        if name.partition("/")[0] in ("picture", "model", "record", "moments"):
            assert theirs["sha256"] == mine["sha256"], name  # bit for bit
        assert theirs.get("score") == mine.get("score")
        makers.add(theirs.get("worker", ""))
    again = sweep_run.planned(wanted.pictures, local, there, metrics=wanted.metrics)
    assert again.units == ()  # what the cluster made is there for this process, too
    return makers


@pytest.mark.long
def test_a_killed_worker_and_a_killed_computer_cost_nothing_but_time(cluster, model, tmp_path):
    wanted = asked(model, recipes=[RECIPES[0], RECIPES[1]], seeds=[1, 2, 3])
    there, here = Store(str(tmp_path / "ray")), Store(str(tmp_path / "local"))
    steps = [(3, kill_a_worker), (12, lambda: kill_a_computer(cluster))]
    _, result = drive(wanted, there, cluster.address, harming(there, steps))
    assert steps == []
    assert result.finished, result.faults
    assert len(check_whole(wanted, there, here)) >= 3


def test_what_a_cluster_cannot_do_is_said(tmp_path):
    with pytest.raises(UserError, match="other processes cannot see it"):
        RayEngine(Store("memory://x"))
    with pytest.raises(UserError, match="no cluster answers"):
        RayEngine(Store(str(tmp_path)), address="127.0.0.1:1")
