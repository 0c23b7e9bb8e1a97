"""Looking at what was built: as a table, as plain data, by its live numbers.

May import anything but the public namespaces.
"""
