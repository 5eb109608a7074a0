"""Seeded damage of files: cut, flipped, overwritten, repeated and inflated bytes."""

from collections.abc import Callable
from random import Random

HUGE = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x00\x00\x01\x00")
DIGITS = b"0123456789"


def place(random: Random, data: bytes) -> int:
    """A position, half of the time near one of the ends, where files have their headers."""
    if random.random() < 0.5:
        near = min(len(data), 256)
        return random.choice((random.randrange(near), len(data) - 1 - random.randrange(near)))
    return random.randrange(len(data))


def truncate(random: Random, data: bytes) -> bytes:
    return data[: place(random, data)]


def flip_bits(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        changed[place(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite(random: Random, data: bytes) -> bytes:
    start, length = place(random, data), random.choice((1, 4, 16, 256))
    return data[:start] + random.randbytes(length) + data[start + length :]


def enlarge_number(random: Random, data: bytes) -> bytes:
    """Replace four bytes by a huge or empty size."""
    start = place(random, data)
    return data[:start] + random.choice(HUGE) + data[start + 4 :]


def enlarge_digits(random: Random, data: bytes) -> bytes:
    """Insert digits into a number that is written as text, such as a shape in a header."""
    places = [i for i, byte in enumerate(data[:4096]) if byte in DIGITS]
    if not places:
        return enlarge_number(random, data)
    start = random.choice(places)
    return data[:start] + random.choice((b"9" * 9, b"-", b"1e9", b"0" * 40, b".5")) + data[start:]


def repeat(random: Random, data: bytes) -> bytes:
    start, length = place(random, data), random.choice((16, 256, 4096))
    return data[:start] + data[start : start + length] * 2 + data[start + length :]


def remove(random: Random, data: bytes) -> bytes:
    start = place(random, data)
    return data[:start] + data[start + random.choice((1, 7, 64, 1024)) :]


MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    truncate,
    flip_bits,
    overwrite,
    enlarge_number,
    enlarge_digits,
    repeat,
    remove,
)


def mutate(random: Random, data: bytes) -> tuple[str, bytes]:
    """One kind of damage, and the damaged bytes; never empty."""
    change = random.choice(MUTATIONS)
    return change.__name__, change(random, data) or b"\0"
