"""Damaged streams of bytes, from good ones and a seed: what both fuzzers feed."""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutations:
    """How streams are made.

    Args:
        seeds: whole packets or frames, to be put in a row.
        interesting_bytes: what a protocol reads as a type, a length or a bound.
        odd_ends: beginnings that never end, and the like.
    """

    seeds: tuple[bytes, ...]
    interesting_bytes: bytes
    odd_ends: tuple[bytes, ...]

    def stream(self, chance: random.Random) -> bytes:
        """A few seeds in a row, damaged in a few places."""
        stream = bytearray(b"".join(chance.choices(self.seeds, k=chance.randint(1, 4))))
        for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
            self._damage(stream, chance)
        return bytes(stream)

    def _damage(self, stream: bytearray, chance: random.Random) -> None:
        position = chance.randrange(len(stream) + 1)
        match chance.randrange(6):
            case 0:
                stream[position : position + 1] = bytes((chance.choice(self.interesting_bytes),))
            case 1:
                del stream[position : position + chance.randint(1, 6)]
            case 2:
                stream[position:position] = chance.randbytes(chance.randint(1, 6))
            case 3:
                stream[position:position] = chance.choice(self.seeds)[: chance.randint(1, 20)]
            case 4 if position < len(stream):
                stream[position] ^= 1 << chance.randrange(8)
            case 5:
                stream += chance.choice(self.odd_ends)


def pieces_of(stream: bytes, chance: random.Random) -> list[bytes]:
    pieces, position = [], 0
    while position < len(stream):
        step = chance.choice((1, 1, 2, 5, 20))
        pieces.append(stream[position : position + step])
        position += step
    return pieces


def run_from_command_line(description: str, fuzz: Callable[[int, int], None]) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    fuzz(arguments.cases, arguments.seed)
    print(f"{arguments.cases} cases from seed {arguments.seed} in {time.monotonic() - began_s:.0f} s: nothing found")
