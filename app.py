"""The studio: `python app.py` opens the page on the embedded model, on this computer only."""

from __future__ import annotations

import os
import sys

# Before gradio and the hub libraries read their settings: nothing leaves this computer.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
local = ",".join(filter(None, (os.environ.get("NO_PROXY"), "localhost,127.0.0.1")))
os.environ |= {"NO_PROXY": local, "no_proxy": local}


def main(argv: list[str] | None = None) -> int:
    """Returns 0 after the page was closed with Ctrl-C, 2 for wrong use."""
    from vqdq.ui import serving

    return serving.serve(serving.parser(__doc__ or "").parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
