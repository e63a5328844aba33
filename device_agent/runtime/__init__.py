"""The shell around the core: one event loop, one scoring thread, and threads for whatever blocks."""
