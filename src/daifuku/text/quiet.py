"""The library `transformers`, kept from talking."""

import logging as python_logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the progress bars and reports of transformers and what it imports off the terminal for a while."""
    disabled = python_logging.root.manager.disable
    python_logging.disable(python_logging.WARNING)
    try:
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if bars:
                logging.enable_progress_bar()
    finally:
        python_logging.disable(disabled)
