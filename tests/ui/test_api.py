"""The named endpoints, as a program calls them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.ui import blind_world
from vqdq.jobs import plan as planning
from vqdq.ui import blind
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


ENDPOINTS = [
    "plan",
    "compress",
    "status",
    "cancel",
    "generate",
    "compare",
    "vote",
    "results",
    "report",
    "estimate",
    "runs",
]


def test_exactly_the_named_endpoints_are_public_and_say_what_they_do(client) -> None:
    told = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(told) == {f"/{name}" for name in ENDPOINTS}
    for name, about in told.items():
        assert len(about["description"]) > 20, name
    names = [each["parameter_name"] for each in told["/compare"]["parameters"]]
    assert names == ["prompt", "variants", "seed", "steps", "guidance"]


def test_estimate_is_the_plan(client, studio) -> None:
    answer = client.predict("trellis-3bit", api_name="/estimate")
    desk = Desk(studio.workspace, "demo")
    plan = desk.plan(desk.preset("trellis-3bit"))
    assert answer["predicted_bytes"] == plan.predicted_bytes
    assert answer["bits_per_weight"] == pytest.approx(plan.bits_per_weight)


def test_compress_compare_generate_report_and_plan(client, studio) -> None:
    run = client.predict("trellis-2bit", "by-program", api_name="/compress")
    done = ended(client, run)
    assert done["state"] == "done"
    assert done["result"]["predicted_bytes"] == done["result"]["measured_bytes"]
    prompt = "a large pink heart on a plain navy background"
    drawn = ended(client, client.predict(prompt, ["by-program"], 3, api_name="/compare"))
    assert drawn["state"] == "done"
    assert drawn["request"]["seed"] == 3
    assert [item["id"] for item in client.predict(2, api_name="/runs")] == [drawn["id"], run]
    one = ended(client, client.predict(prompt, "by-program", 4, 2, api_name="/generate"))
    assert (Path(one["folder"]) / one["result"]["image"]).is_file()
    files = client.predict(drawn["id"], api_name="/report")
    page = urlopen(f"{studio.url}{files['urls']['html']}").read()
    assert page == Path(files["html"]).read_bytes()
    assert page.count(b"data:image/png") == 4
    planned = ended(client, client.predict("trellis-3bit", 2.7, api_name="/plan"))
    assert planned["request"]["bits"] == 2.7
    assert planned["result"]["predicted_bytes"] > 0


def test_a_second_start_is_queued_and_says_its_place_until_both_are_cancelled(
    client, studio
) -> None:
    slow = studio.workspace.path / "slow"
    slow.touch()
    try:
        runs = [
            client.predict("trellis-2bit", f"by-program-{n}", api_name="/compress")
            for n in range(3)
        ]
        end = time.monotonic() + 30
        while client.predict(runs[0], api_name="/status")["state"] != "running":
            assert time.monotonic() < end
            time.sleep(0.1)
        told = [client.predict(run, api_name="/status") for run in runs]
        assert [each["position"] for each in told] == [0, 1, 2]
        assert told[2]["waits"] == "queued: 2 runs before it"
        for run in reversed(runs):
            client.predict(run, api_name="/cancel")
        assert {ended(client, run)["state"] for run in runs} == {"cancelled"}
        assert client.predict(runs[0], api_name="/status")["position"] is None
    finally:
        slow.unlink()


def test_a_blind_test_is_voted_on_and_opened(client, studio, monkeypatch) -> None:
    monkeypatch.setattr(planning, "fingerprint", lambda model: f"of {model}")
    wish = blind_world.wish(variants=("by-program",), identical=0, obvious=0, repeats=0)
    run = blind.submit(Desk(studio.workspace, "demo"), wish)
    drawn = ended(client, run)
    assert drawn["state"] == "done", drawn["error"]
    asked = client.predict(run, "Ana", api_name="/vote")
    seen = []
    while not asked["done"]:
        seen.append(asked)
        assert "by-program" not in json.dumps(asked)
        answer = (run, "Ana", "equal", asked["ballot"], asked["question"])
        asked = client.predict(*answer, api_name="/vote")
    assert len(seen) == 4
    found = client.predict(run, True, api_name="/results")
    (row,) = found["comparisons"]
    assert row["preference"]["tally"]["ties"] == 4
    assert any("n = " in line for line in found["words"])
    files = client.predict(run, api_name="/report")
    assert len(json.loads(Path(files["json"]).read_text())["votes"]) == 4


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("/estimate", ("trellis-3bits",), "trellis-3bit"),
        ("/compress", ("trellis-3bit", "../outside"), "letters"),
        ("/compare", ("", ["by-program"]), "prompt is empty"),
        ("/compare", ("a red ring", ["no-such-model"]), "no-such-model"),
        ("/status", ("no-such-run",), "no-such-run"),
        ("/generate", ("a red ring", "no-such-model"), "no-such-model"),
        ("/plan", ("trellis-3bit", 3, 8), "no target, or two"),
        ("/vote", ("no-such-test", "Ana"), "no"),
        ("/results", ("no-such-test",), "no"),
        ("/report", ("no-such-run",), "no-such-run"),
    ],
)
def test_faults_travel_whole(client, endpoint: str, arguments: tuple, words: str) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=words):
        client.predict(*arguments, api_name=endpoint)
