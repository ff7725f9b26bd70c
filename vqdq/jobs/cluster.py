"""The only door to Ray: units of a sweep on the computers of a cluster.

Ray decides where a unit runs, starts it again elsewhere when its worker or its computer dies, and
kills what does not fit into memory. Nothing travels through its object store but the unit and how
it ended: results go to the shared folder. Usage statistics, the dashboard and the export of metrics
are off, and a cluster that is started here listens on this computer alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs.grid_records import Fault
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_units import Environment, Outcome, Unit, here
from vqdq.jobs.sweep_work import Bench
from vqdq.waiting import settle

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is loaded: nothing is told to anybody

RETRIES = 5
"""Times that a unit is started again after its worker died: a unit that kills five is at fault."""
LOOPBACK = "127.0.0.1"
_HERE = (LOOPBACK, "localhost")
_WAIT_SECONDS = 0.25
_ANSWER_SECONDS = 5.0
_STORE_BYTES = 80_000_000  # the least that Ray takes; units are small
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # units without a card do not look for one
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


class RayEngine:
    """Units on a Ray cluster: one that is there, or one started on this computer.

    Args:
        store: the folder of results, under the same address on every computer.
        address: of a cluster ("host:port"); "" is that of RAY_ADDRESS, else starts one here.
        workers: how many units run at a time on a cluster that is started here; 0 is every core.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or the folder is in the memory of
            this process.
    """

    name = "ray"

    def __init__(self, store: Store, *, address: str = "", workers: int = 0) -> None:
        if store.url.startswith("memory:"):
            raise UserError(
                "other processes cannot see it.", where=store.url, remedy="Name a shared folder."
            )
        address = address or os.environ.get("RAY_ADDRESS", "")
        self._ray = _ray(alone=not address or address.partition(":")[0] in _HERE)
        self._url = store.url
        self._expected: Environment | None = None
        self._flying: dict[Any, Unit] = {}
        if address:
            _require_answer(address)
        try:
            self._ray.init(**_settings(address, workers))
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            words = str(error).strip().split("\n", 1)[0][:200]
            raise _silent(address or "ray", words) from error
        self._task = self._ray.remote(max_retries=RETRIES, retry_exceptions=False)(_perform)

    def environment(self, device: str, threads: int) -> Environment:
        """Returns what a worker of the cluster runs on."""
        look = self._ray.remote(num_cpus=1, num_gpus=1 if device == "cuda" else 0)(here)
        try:
            self._expected = self._ray.get(look.remote(device, threads), timeout=180)
        except self._ray.exceptions.GetTimeoutError as error:
            need = "a graphics card" if device == "cuda" else "a free core"
            raise UserError(
                f"no worker with {need} answers.",
                where="ray",
                remedy="Look at `ray status`; start nodes, or wait until others are done.",
            ) from error
        except self._ray.exceptions.RayTaskError as error:
            raise UserError(
                f"the workers cannot run this program: {str(error.cause)[:200]}",
                where="ray",
                remedy="Install the same version of vqdq on every computer.",
            ) from error
        assert self._expected is not None
        return self._expected

    def slots(self) -> int:
        """Returns how many cores the living computers have together."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def start(self, unit: Unit) -> None:
        """Hands a unit to Ray, with what it takes."""
        assert self._expected is not None
        options = self._task.options(
            num_cpus=self._expected.threads,
            num_gpus=unit.gpu_share,
            name=f"{unit.kind} {unit.number}",
        )
        self._flying[options.remote(unit, self._url, self._expected)] = unit

    def finished(self) -> Sequence[Outcome]:
        """Returns how units ended; Ray has tried those again whose workers died."""
        if not self._flying:
            return []
        done, _ = self._ray.wait(
            list(self._flying), num_returns=len(self._flying), timeout=_WAIT_SECONDS
        )
        return [self._outcome(ref, self._flying.pop(ref)) for ref in done]

    def close(self) -> None:
        """Leaves the cluster, or ends it if it was started here.

        Ray ends the workers of a driver that leaves; results are whole or not there. Cancelling
        each unit first would be kinder, but a unit that ends at that moment makes Ray abort the
        whole process (its task_manager.cc: "Tried to complete task that was not pending").
        """
        self._flying.clear()
        self._ray.shutdown()

    def _outcome(self, ref: Any, unit: Unit) -> Outcome:
        failed = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except failed.RayTaskError as error:
            words = f"{type(error.cause).__name__}: {error.cause}"
            remedy = "This is a fault of the program; the worker's log has the details."
        except failed.OutOfMemoryError:
            words = "a computer ran out of memory."
            remedy = "Use fewer workers on a computer, or larger ones."
        except failed.RayError as error:
            words = f"its worker died {RETRIES + 1} times: {str(error).strip().splitlines()[0]}"
            remedy = "Look at the logs of the cluster."
        fault = Fault(what=words[:300], where=f"{unit.kind} on the cluster", remedy=remedy)
        return Outcome(number=unit.number, faults=dict.fromkeys(unit.makes, fault))


def missing() -> str:
    """Returns what has to be installed for a cluster; "" where nothing is missing."""
    from importlib import util

    return "" if util.find_spec("ray") else "pip install 'vqdq[cluster]'"


def _require_answer(address: str) -> None:
    """Raises `UserError` at once where nobody listens; Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto": Ray knows where
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _silent(address, str(error)) from error


def _silent(address: str, words: str) -> UserError:
    return UserError(
        f"no cluster answers: {words}.".replace("..", "."),
        where=address,
        remedy="Check the address; `ray start --head` starts a cluster.",
    )


_bench: tuple[str, Environment, Bench] | None = None


def _perform(unit: Unit, url: str, expected: Environment) -> Outcome:
    """Does a unit in a worker's process, which keeps its pipelines for the next one."""
    global _bench
    if _bench is None or _bench[:2] != (url, expected):
        _bench = (url, expected, Bench(Store(url), expected))
    return _bench[2].perform(unit)


def _settings(address: str, workers: int) -> dict[str, Any]:
    variables = {**_QUIET, **settle({}), "OMP_NUM_THREADS": "1"}
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": variables},
        "logging_level": "ERROR",
        "log_to_driver": False,
        "configure_logging": False,
        "ignore_reinit_error": False,
    }
    if address:
        return {**common, "address": address}
    return {
        **common,
        "address": "local",
        "num_cpus": workers or None,
        "include_dashboard": False,
        "_node_ip_address": LOOPBACK,
        "object_store_memory": _STORE_BYTES,
        "_system_config": {"enable_metrics_collection": False},
    }


def _ray(*, alone: bool) -> Any:
    """Ray itself; `alone`: a cluster that is on this computer and may be reached from it only."""
    what = missing()
    if what:
        raise UserError("Ray is not installed.", where="--engine ray", remedy=f"{what}.")
    if alone:
        # Its switch for computers without clusters: names and listens on the loopback alone. Else
        # it takes "127.0.0.1" for the computer's outer address, where such a cluster is not.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    return ray
