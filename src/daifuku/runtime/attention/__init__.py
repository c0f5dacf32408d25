"""One attention kernel per file: `flex.py` defines `ATTENTION`, whose name is "flex"."""
