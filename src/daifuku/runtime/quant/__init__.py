"""One quantiser per file: `int8.py` defines `QUANTISER`, whose name is "int8"."""
