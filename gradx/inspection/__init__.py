"""Inspect a transformation as a table or as plain data, and set its live values.

May import anything but the public namespaces.
"""
