"""The event loop that a hub runs on."""

import asyncio
import gc
import resource


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed: its TLS takes a tenth of the memory that asyncio's own takes for a connection."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def raise_file_limit() -> None:
    """Let this process open as many files as it may: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calm_collector() -> None:
    """Let the cycle collector of this process come less often.

    A hub makes few cycles and keeps many objects: over 100,000 devices one full pass takes half a second, in which
    nobody is served.
    """
    gc.set_threshold(50_000, 20, 100)
