"""One frozen model per concern; every key of the surface belongs to exactly one of them.

These files do without `from __future__ import annotations`: pydantic would compile every annotation again at start-up.
"""
