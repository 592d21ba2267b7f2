"""Selective scan, the token mixing of Mamba: see `reference.py` for the mathematics."""
