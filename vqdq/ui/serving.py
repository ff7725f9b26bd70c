"""From the words of `app.py` to a page that is served, and to its end.

The order is what keeps it safe: the login and the address are checked before anything is touched,
the workspace is taken before anybody can see a page.
"""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs.permitted import Permitted
from vqdq.jobs.requests import Request
from vqdq.jobs.store import Workspace
from vqdq.jobs.worker import Worker
from vqdq.models import pipelines
from vqdq.ui import login, page, people
from vqdq.ui.guard import allow_runs
from vqdq.ui.rates import RUNS, Buckets

MOST_WAITING = 50
"""Runs of one person in the queue."""


def parser(words: str) -> argparse.ArgumentParser:
    """Returns what `app.py` understands; `words` say what it is."""
    made = argparse.ArgumentParser(description=words)
    add = made.add_argument
    add("--host", default="127.0.0.1", help="other addresses need --auth")
    add("--port", type=int, default=7860)
    add("--workspace", default="workspace", help="folder of runs and models")
    add("--model", default="demo", help='"demo", a diffusers folder or a hub id')
    add("--auth", help=f"NAME:PASSWORD, or a file with such lines; or set {login.VARIABLE}")
    add("--models", action="append", default=[], metavar="DIR", type=Path,
        help="with a login: a folder whose models people may open; may be repeated")  # fmt: skip
    add("--root-path", default="", metavar="PATH", help="behind a proxy: where it serves the page")
    add("--log-details", action="store_true", help="the log may hold prompts and paths")
    add("--open", action="store_true", help="open the page in the browser")
    return made


def serve(wanted: argparse.Namespace) -> int:
    """Returns 0 after the page was closed with Ctrl-C, 2 for wrong use."""
    try:
        users = login.users(wanted.auth)
        page.check_address(wanted.host, wanted.port, users)
        workspace = Workspace.open(wanted.workspace)
        # the worker looks after everybody's runs, the page after those of who asks
        everything = Workspace.open(wanted.workspace)
        worker = Worker(everything, warm=(wanted.model,), details=wanted.log_details)
        worker.reserve()
        if users is not None:
            share(workspace, wanted.model, wanted.models)
        options = page.launch_options(
            workspace, host=wanted.host, port=wanted.port, auth=users, root_path=wanted.root_path
        )
        _, url, _ = page.build(workspace, wanted.model).launch(prevent_thread_lock=True, **options)
        worker.start()  # last: its process would compete with the page for the cores
    except UserError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    try:
        print(f"VQDQ is ready: {url}  (workspace: {workspace.path}; stop with Ctrl-C)", flush=True)
        if wanted.open:
            webbrowser.open(url)
        page.wait()
    except KeyboardInterrupt:
        print()
    finally:
        worker.stop()
    return 0


def share(workspace: Workspace, model: str, folders: list[Path]) -> None:
    """Makes a workspace safe for several people: own runs, permitted models, a fair pace.

    Raises:
        UserError: a folder of models does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError("is no folder.", where=f"--models {folder}", remedy="Check the path.")
    recipes = [path.stem for path in pipelines.presets_folder().glob("*.json")]
    places = Permitted(workspace.path, folders=folders, names=(model,), recipes=recipes)
    workspace.person = people.visitor
    workspace.permit = pace(workspace, places)
    workspace.admit = places.check_model


def pace(workspace: Workspace, places: Permitted) -> Callable[[Request], None]:
    """Returns what looks at every request before it is queued."""
    buckets = Buckets(RUNS)

    def look(request: Request) -> None:
        places.check(request)
        allow_runs(buckets, workspace.person() or "")
        if len(workspace.queue()) >= MOST_WAITING:
            raise UserError(
                f"{MOST_WAITING} of your runs are waiting.",
                where="queue",
                remedy="Let some end, or cancel them.",
            )

    return look
