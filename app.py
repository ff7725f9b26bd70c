"""The studio: `python app.py` opens the page on the embedded model, on this computer only."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser

# Before gradio and the hub libraries read their settings: nothing leaves this computer.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
local = ",".join(filter(None, (os.environ.get("NO_PROXY"), "localhost,127.0.0.1")))
os.environ |= {"NO_PROXY": local, "no_proxy": local}


def main(argv: list[str] | None = None) -> int:
    """Returns 0 after the page was closed with Ctrl-C, 2 for wrong use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="other addresses need --auth")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--workspace", default="workspace", help="folder of runs and models")
    parser.add_argument("--model", default="demo", help='"demo", a diffusers folder or a hub id')
    parser.add_argument("--auth", help="USER:PASSWORD, or a file that holds it")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    wanted = parser.parse_args(argv)

    from vqdq.errors import UserError
    from vqdq.jobs.store import Workspace
    from vqdq.jobs.worker import Worker
    from vqdq.ui import page

    try:
        auth = page.login(wanted.auth)
        page.check_address(wanted.host, wanted.port, auth)
        workspace = Workspace.open(wanted.workspace)
        worker = Worker(workspace, warm=(wanted.model,))
        worker.reserve()  # before anybody can see a page
        options = page.launch_options(workspace, host=wanted.host, port=wanted.port, auth=auth)
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


if __name__ == "__main__":
    sys.exit(main())
