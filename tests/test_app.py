"""The door: what it refuses, and how it serves."""

from __future__ import annotations

import socket
from pathlib import Path

import app
from vqdq.jobs.store import Workspace
from vqdq.ui import page


def test_another_address_without_a_login_is_refused(tmp_path: Path, capsys) -> None:
    code = app.main(["--host", "0.0.0.0", "--workspace", str(tmp_path / "w")])
    assert code == 2
    said = capsys.readouterr().err
    assert "there is no login" in said
    assert "--auth" in said
    assert not (tmp_path / "w").exists()


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port), "--workspace", str(tmp_path / "w")]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_a_workspace_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    port = _free_port()
    assert app.main(["--workspace", str(tmp_path / "file" / "w"), "--port", str(port)]) == 2
    assert "app.py:" in capsys.readouterr().err


def test_only_the_runs_are_served_and_nothing_is_told(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    options = page.launch_options(workspace, host="127.0.0.1", port=1, auth=None)
    workspace.close()
    assert options["allowed_paths"] == [str(tmp_path / "runs")]
    assert str(tmp_path / "models") in options["blocked_paths"]
    assert options["share"] is options["ssr_mode"] is options["run_history"] is False
    assert options["server_name"] == "127.0.0.1"
    assert Path(options["favicon_path"]).is_file()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
