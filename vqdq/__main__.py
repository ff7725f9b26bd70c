"""`python -m vqdq …` is the same as `vqdq …`."""

from __future__ import annotations

import sys

from vqdq.cli import main

if __name__ == "__main__":
    sys.exit(main())
