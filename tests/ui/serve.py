"""Serves the page with the toy engine: `python -m tests.ui.serve WORKSPACE PORT`."""

from __future__ import annotations

import os
import sys
import threading

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"

from vqdq.jobs.store import Workspace
from vqdq.jobs.worker import Worker
from vqdq.ui import page

if __name__ == "__main__":
    workspace = Workspace.open(sys.argv[1])
    worker = Worker(workspace, engine="tests.ui.toy_engine")
    worker.start()
    options = page.launch_options(workspace, host="127.0.0.1", port=int(sys.argv[2]), auth=None)
    page.build(workspace, "demo").launch(prevent_thread_lock=True, **options)
    print("ready", flush=True)
    threading.Event().wait()
