"""Many people on one studio: login, own results, a fair queue, and what nobody gets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from gradio_client import Client

from tests.jobs.conftest import draw, toy
from vqdq.errors import UserError
from vqdq.jobs.requests import Axis, BlindRequest, CompareRequest, CompressRequest, GridRequest
from vqdq.jobs.store import Workspace
from vqdq.ui import login, page, serving
from vqdq.ui.rates import Buckets, Rate

T = TypeVar("T")
PASSWORDS = {"anna": "a-long:secret", "ben": "another"}


def finish(asked: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a thread of its own: the browser of other tests keeps a loop in ours."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asked).result()


def test_passwords_are_hashed_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "people"
    hashed = login.Secret.of("another")
    path.write_text(f"# people\nanna:a-long:secret\n\n ben:{hashed}\n")
    assert "another" not in str(hashed)
    assert str(login.Secret.parse(str(hashed))) == str(hashed)
    assert str(login.Secret.of("another")) != str(hashed)
    for found in (login.users(str(path), {}), login.users(None, {"VQDQ_AUTH": path.read_text()})):
        assert found is not None
        assert found.names == ("anna", "ben")
        for name, password in PASSWORDS.items():
            assert finish(found.check(name, password))
        for name, password in (("anna", "another"), ("eve", "another"), ("ben", ""), ("", "x")):
            assert not finish(found.check(name, password))
        assert not finish(found.check("ben", "x" * 2000))
    assert login.users(None, {}) is None
    for bad in ("anna", ":secret", "anna:", "", "anna:x\nanna:y"):
        with pytest.raises(UserError):
            login.users(bad, {})
    for bad in ("scrypt$1$2", "scrypt$99999999999$8$1$00$00", "scrypt$16384$8$1$zz$00"):
        with pytest.raises(UserError, match="is damaged"):
            login.users(f"ben:{bad}", {})


def test_a_known_hash_is_what_the_standard_says() -> None:
    """RFC 7914, section 12: scrypt("pleaseletmein", "SodiumChloride", 16384, 8, 1), 32 of 64."""
    found = login._scrypt("pleaseletmein", b"SodiumChloride", 16384, 8, 1)
    assert found.hex() == "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"


def test_buckets_fill_again() -> None:
    now = [0.0]
    buckets = Buckets(Rate(burst=2, seconds=10.0), clock=lambda: now[0])
    assert [buckets.wait("a"), buckets.wait("a"), buckets.wait("b")] == [0, 0, 0]
    assert buckets.wait("a") == 10.0
    now[0] = 6.0
    assert buckets.wait("a") == pytest.approx(4.0)
    now[0] = 10.0
    assert [buckets.wait("a"), buckets.wait("a")] == [0, 10.0]


def test_one_sees_and_stops_only_ones_own_and_takes_turns(tmp_path: Path) -> None:
    space, asking = Workspace.open(tmp_path), ["anna"]
    space.person = lambda: asking[0] or None

    def by(name: str, *requests) -> list[str]:
        asking[0] = name
        return [space.submit(request) for request in requests]

    annas = by("anna", *(draw(seed=n) for n in range(4)))
    bens = by("ben", draw(seed=10), toy(name="bens"))
    carls = by("carl", draw(seed=20))
    (blind,) = by("ben", BlindRequest(test="0" * 64))
    asking[0] = "anna"
    assert {run.id for run in space.runs()} == {*annas, blind}
    assert [run.id for run in space.queue()] == annas
    for forbidden in (space.run, space.cancel, space.resume, space.delete):
        with pytest.raises(UserError, match="no run"):
            forbidden(bens[0])
    with pytest.raises(UserError, match="another person"):
        space.delete(blind)
    assert space.run(blind).owner == "ben"
    assert not space.shown_to(bens[0], "anna")
    assert space.shown_to(blind, "anna")
    asking[0] = ""
    order: list[str] = []
    assert [space.ahead(run) for run in (annas[0], bens[0], carls[0])] == [0, 1, 2]
    while (taken := space.take()) is not None:
        order.append(taken.id)
        space.finish(taken.id, "done")
    assert order == [
        annas[0], bens[0], carls[0], annas[1], bens[1], annas[2], blind, annas[3],
    ]  # fmt: skip
    (space.models_folder / "bens").mkdir()
    (space.models_folder / "bens" / "model_index.json").write_text("{}")
    asking[0] = "anna"
    assert [model.name for model in space.models()] == ["bens"]
    with pytest.raises(UserError, match="another person made it"):
        space.delete_model("bens")
    asking[0] = "ben"
    space.delete_model("bens")
    assert space.reindex() == 8
    assert {run.owner for run in space.runs()} == {"ben"}
    space.close()


def test_models_and_files_beyond_the_named_places_are_refused(tmp_path: Path) -> None:
    space = Workspace.open(tmp_path / "space")
    named, outside = tmp_path / "named", tmp_path / "outside"
    for folder in (named / "good", outside, space.models_folder / "mine", named / "leaky"):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    (named / "link").symlink_to(outside)
    (space.models_folder / "out").symlink_to(outside)
    (named / "leaky" / "weights").symlink_to(outside / "model_index.json")
    (named / "loop").symlink_to(named / "loop")
    serving.share(space, "owner/desk", [named])
    assert space.permit is not None
    twisted = str(named / "x" / ".." / "good")
    for model in ("demo", "mine", str(named / "good"), "owner/desk", twisted):
        space.permit(draw(model))
    for model in (
        str(outside), "out", str(named / "link"), str(named / "leaky"), str(named),
        str(named / ".." / "outside"), "../outside", "/", "~", ".", "..", "owner/other",
        str(named / "loop"), str(space.path / "models" / ".." / ".." / "outside"),
    ):  # fmt: skip
        axis = Axis(name="model", values=("demo", model))
        for request in (
            draw(model),
            CompareRequest(model="demo", variants=(model,), prompt="a"),
            GridRequest(model="demo", axes=(axis,), prompt="a"),
        ):
            with pytest.raises(UserError, match="may be opened here"):
                space.permit(request)
    axis = Axis(name="recipe", values=("/etc/passwd",))
    request = GridRequest(model="demo", axes=(axis,), prompt="a")
    with pytest.raises(UserError, match="no shipped recipe"):
        space.permit(request)
    values = toy(model="demo").to_json()
    sections = {"calibration": {"prompt_file": "/etc/passwd"}}
    for bad in (values | {"recipe": values["recipe"] | sections}, values | {"calibration": "/etc"}):
        request = CompressRequest.from_json(bad)
        with pytest.raises(UserError, match="names a file"):
            space.permit(request)
    with pytest.raises(UserError, match="too many runs"):
        start_many(space)
    space.close()


def start_many(space: Workspace) -> None:
    assert space.permit is not None
    for number in range(99):
        space.permit(draw("demo", seed=number))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A studio with a login, without a worker: what is asked stays queued."""
    path = tmp_path_factory.mktemp("shared")
    space = Workspace.open(path)
    lines = "\n".join(f"{name}:{password}" for name, password in PASSWORDS.items())
    users = login.users(lines, {})
    serving.share(space, "demo", [])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = page.launch_options(space, host="127.0.0.1", port=port, auth=users)
    blocks = page.build(space, "demo")
    _, url, _ = blocks.launch(prevent_thread_lock=True, **options)
    with contextlib.closing(Workspace.open(path)) as everything:
        assert everything.person() is None
        yield url.rstrip("/"), everything
    blocks.close(verbose=False)
    space.close()


@contextlib.contextmanager
def visitor(url: str, name: str = ""):
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        if name:
            given = {"username": name, "password": PASSWORDS[name]}
            assert client.post("/login", data=given).status_code == 200
        yield client


def test_without_a_name_one_gets_nothing(shared) -> None:
    url, space = shared
    secret = space.runs_folder / "x" / "picture.png"
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes(b"png")
    with visitor(url) as client:
        for path in ("/config", "/gradio_api/info", f"/gradio_api/file={secret}"):
            assert client.get(path).status_code == 401, path
        body = {"data": [], "fn_index": 0, "session_hash": "s"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 401
        assert client.post("/gradio_api/run/predict", json=body).status_code == 401
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401


def test_people_have_their_own_runs_files_and_names(shared) -> None:
    url, space = shared
    clients = {
        name: Client(url, auth=(name, password), verbose=False, httpx_kwargs={"timeout": 120})
        for name, password in PASSWORDS.items()
    }
    runs = {
        name: client.predict("a red circle", "", api_name="/generate")
        for name, client in clients.items()
    }
    assert {name: space.run(run).owner for name, run in runs.items()} == {n: n for n in runs}
    anna = clients["anna"]
    assert [run["id"] for run in anna.predict(api_name="/runs")] == [runs["anna"]]
    assert anna.predict(runs["anna"], api_name="/status")["position"] == 0
    assert clients["ben"].predict(runs["ben"], api_name="/status")["position"] == 1
    for name in ("/status", "/cancel", "/report"):
        with pytest.raises(Exception, match="there is no run"):
            anna.predict(runs["ben"], api_name=name)
    for bad in ("/etc/passwd", "../../README.md", "presets/w8a8.json"):
        with pytest.raises(Exception, match="no recipe"):
            anna.predict(bad, api_name="/estimate")
    for bad in ("/etc", "../x", "owner/model"):
        with pytest.raises(Exception, match="no compressed model"):
            anna.predict("a red circle", bad, api_name="/generate")
        with pytest.raises(Exception, match="model"):
            anna.predict("a red circle", [bad], api_name="/compare")
    for name, run in runs.items():
        (space.runs_folder / run / "picture.png").write_bytes(name.encode())
    leak = space.runs_folder / runs["anna"] / "leak.png"
    leak.symlink_to("/etc/hostname")
    page_file = space.runs_folder / runs["anna"] / "report.html"
    page_file.write_text("<script>alert(1)</script>")
    with visitor(url, "anna") as client:
        base = f"/gradio_api/file={space.runs_folder}"
        assert client.get(f"{base}/{runs['anna']}/picture.png").content == b"anna"
        assert client.get(f"{base}/{runs['ben']}/picture.png").status_code == 403
        assert client.get(f"{base}/{runs['anna']}/../{runs['ben']}/picture.png").status_code == 403
        shown = client.get(f"{base}/{runs['anna']}/report.html")
        assert "sandbox" in shown.headers["content-security-policy"]
        assert shown.headers["x-content-type-options"] == "nosniff"
        for path in (
            f"{base}/{runs['anna']}/leak.png", f"{base}/../index.sqlite", f"{base}/../server.json",
            "/gradio_api/file=/etc/passwd", "/gradio_api/file=http://127.0.0.1:1/x", f"{base}/",
        ):  # fmt: skip
            assert client.get(path).status_code in (403, 404), path
        other = {"Origin": "http://evil.example"}
        assert client.post("/gradio_api/queue/join", json={}, headers=other).status_code == 403
        join = "/gradio_api/queue/join"
        assert client.post(join, json={"data": "x" * (5 << 20)}).status_code == 413
        assert client.post(join, content=iter([b"{}"])).status_code == 411


def test_an_upload_is_only_what_was_uploaded(shared) -> None:
    """The page reads and removes what is dropped on it: never a file of another place."""
    url, space = shared
    run = space.runs()[0] if space.runs() else None
    target = space.runs_folder / (run.id if run else "x") / "keep.png"
    target.write_bytes(b"keep")
    with visitor(url, "anna") as client:
        config = client.get("/config").json()
        taking = [
            (at, dep)
            for at, dep in enumerate(config["dependencies"])
            if any(
                part["id"] in dep["inputs"] and part["type"] == "uploadbutton"
                for part in config["components"]
            )
        ]
        assert taking
        for at, dep in taking:
            for path in (str(target), "/etc/hostname", str(space.path / "index.sqlite")):
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                kinds = {part["id"]: part["type"] for part in config["components"]}
                data = [file if kinds[i] == "uploadbutton" else None for i in dep["inputs"]]
                body = {"data": data, "fn_index": dep.get("id", at), "session_hash": "abc"}
                answer = client.post("/gradio_api/run/predict", json=body)
                assert answer.status_code != 200 or "rror" in answer.text, path
                assert "root:" not in answer.text
    assert target.read_bytes() == b"keep"
    assert os.path.exists(space.path / "index.sqlite")


def test_another_sites_name_for_this_computer_is_refused(tmp_path: Path) -> None:
    from vqdq.ui.guard import Guard

    space = Workspace.open(tmp_path)
    answers: list[int] = []

    async def behind(_scope, _receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def asked(wall, host: str, **more: str) -> int:
        headers = {"host": host, "content-length": "2"} | more
        scope = {
            "type": "http", "method": "POST", "path": "/gradio_api/queue/join",
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()], "client": ("c", 1),
        }  # fmt: skip
        answers.clear()

        async def send(message) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        await wall(scope, None, send)
        return answers[0]

    alone, shared = (Guard(behind, workspace=space, login=each) for each in (False, True))
    for host in ("localhost:7860", "127.0.0.1:7860", "[::1]:7860"):
        assert finish(asked(alone, host)) == 200
        assert finish(asked(alone, host, origin=f"http://{host}")) == 200
    for host in ("evil.example", "127.0.0.1.evil.example:7860", "", "[", "10.0.0.1"):
        assert finish(asked(alone, host)) == 421
    assert finish(asked(shared, "studio.example")) == 200
    assert finish(asked(shared, "a", origin="https://b")) == 403
    assert finish(asked(shared, "in", origin="https://b", **{"x-forwarded-host": "b"})) == 200
    assert finish(asked(alone, "localhost", origin="null")) == 403
    space.close()


def test_a_page_shows_nobodys_runs_before_somebody_asks(shared) -> None:
    url, everything = shared
    blind = everything.submit(BlindRequest(test="1" * 64))
    run = everything.submit(draw(prompt="a secret <script>alert(1)</script>"))
    with contextlib.closing(Workspace.open(everything.path)) as page_side:
        serving.share(page_side, "demo", [])
        assert [record.id for record in page_side.runs()] == [blind]
        assert page_side.active() is None
    with visitor(url, "anna") as client:
        assert "a secret" not in client.get("/config").text
    everything.cancel(run)
    everything.cancel(blind)


def test_passwords_are_not_tried_by_the_hundred(shared, monkeypatch) -> None:
    """Last: it uses up what this address may try."""
    url, _ = shared
    tried: list[str] = []

    def fits(_secret, password: str) -> bool:
        tried.append(password)
        return False

    monkeypatch.setattr(login.Secret, "fits", fits)
    with visitor(url) as client:
        answers = [
            client.post("/login", data={"username": "anna", "password": f"{n}"}) for n in range(60)
        ]
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {400, 429}
    assert codes.count(400) == len(tried) < 60
    assert "Retry-After" in answers[codes.index(429)].headers
