"""Silence transformers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppress progress bars and warnings of transformers."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with _no_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


def bars_on_terminals() -> contextlib.AbstractContextManager[None]:
    """Show progress bars of transformers only on a terminal."""
    return contextlib.nullcontext() if sys.stderr.isatty() else _no_bars()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
