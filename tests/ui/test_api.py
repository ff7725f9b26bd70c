"""The named endpoints, as a program calls them."""

from __future__ import annotations

import time

import pytest

from vqdq.ui.desk import Desk


@pytest.fixture(scope="module")
def client(studio):
    from gradio_client import Client

    return Client(studio.url, verbose=False)


def ended(client, run: str, seconds: float = 90) -> dict:
    end = time.monotonic() + seconds
    while (status := client.predict(run, api_name="/status"))["state"] in ("queued", "running"):
        assert time.monotonic() < end, status
        time.sleep(0.2)
    return status


def test_only_the_named_endpoints_are_public(client) -> None:
    names = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    assert names == {"/estimate", "/compress", "/status", "/cancel", "/compare", "/runs"}


def test_estimate_is_the_plan(client, studio) -> None:
    answer = client.predict("trellis-3bit", api_name="/estimate")
    desk = Desk(studio.workspace, "demo")
    plan = desk.plan(desk.preset("trellis-3bit"))
    assert answer["predicted_bytes"] == plan.predicted_bytes
    assert answer["bits_per_weight"] == pytest.approx(plan.bits_per_weight)


def test_compress_compare_and_runs(client) -> None:
    run = client.predict("trellis-2bit", "by-program", api_name="/compress")
    done = ended(client, run)
    assert done["state"] == "done"
    assert done["result"]["predicted_bytes"] == done["result"]["measured_bytes"]
    prompt = "a large pink heart on a plain navy background"
    drawn = ended(client, client.predict(prompt, ["by-program"], 3, api_name="/compare"))
    assert drawn["state"] == "done"
    assert drawn["request"]["seed"] == 3
    assert [item["id"] for item in client.predict(2, api_name="/runs")] == [drawn["id"], run]


def test_cancel(client, studio) -> None:
    slow = studio.workspace.path / "slow"
    slow.touch()
    try:
        run = client.predict("trellis-2bit", "cancelled-by-program", api_name="/compress")
        client.predict(run, api_name="/cancel")
        assert ended(client, run)["state"] == "cancelled"
    finally:
        slow.unlink()


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("/estimate", ("trellis-3bits",), "trellis-3bit"),
        ("/compress", ("trellis-3bit", "../outside"), "letters"),
        ("/compare", ("", ["by-program"]), "prompt is empty"),
        ("/compare", ("a red ring", ["no-such-model"]), "no-such-model"),
        ("/status", ("no-such-run",), "no-such-run"),
    ],
)
def test_faults_travel_whole(client, endpoint: str, arguments: tuple, words: str) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=words):
        client.predict(*arguments, api_name=endpoint)
