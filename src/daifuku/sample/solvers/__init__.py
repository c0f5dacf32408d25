"""One solver per file: `euler.py` defines `SOLVER`, whose name is "euler"."""
