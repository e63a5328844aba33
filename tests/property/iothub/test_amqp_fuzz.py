"""A short run of the fuzzer; see `amqp_fuzz` for the long one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from amqp_fuzz import fuzz


def test_mutated_streams_give_frames_or_a_protocol_error_and_leave_the_hub_whole() -> None:
    fuzz(5_000, seed=2)
