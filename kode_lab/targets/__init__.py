"""Targets: what can be asked and judged, behind one protocol; the page of it is ``target.py``."""
