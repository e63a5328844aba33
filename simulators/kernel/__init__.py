"""Deterministic stand-ins for what a device stands on: its disk and its clock. Knows nothing of agents or models."""
