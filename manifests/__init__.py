"""The documents that cross a boundary between cloud and device, and nothing else.

Wire spelling is camelCase, Python is snake_case; the one mapping between them is in this room. No clients, no IO.
"""
