"""One step cache per file: `teacache.py` defines `STEPCACHE`, whose name is "teacache"."""
