"""Work without chatter: hints of the libraries would land amid our own output."""

from __future__ import annotations

import contextlib
from collections.abc import Generator


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Silences the progress bars and hints of diffusers and transformers, and restores them."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with contextlib.ExitStack() as stack:
        for library in (diffusers_logging, transformers_logging):
            level = library.get_verbosity()
            stack.callback(library.set_verbosity, level)
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
