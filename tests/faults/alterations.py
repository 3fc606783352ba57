"""Ways in which a file may be damaged."""

import random
from pathlib import Path

WAYS = ("flip", "zeros", "truncate", "swap")


def altered(path: Path, how: str, rng: random.Random) -> None:
    """Flip a bit of the file `path`, fill its end with zeros, truncate it, or put another file of its folder there."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if how == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif how == "zeros":
        content[place:] = bytes(len(content) - place) if any(content[place:]) else b"1"
    elif how == "truncate":
        del content[min(place, len(content) - 2) :]  # more than the line break at the end of a JSON file
    else:
        others = [other for other in path.parent.iterdir() if other.is_file() and other.read_bytes() != content]
        content = bytearray(rng.choice(others).read_bytes())
    path.write_bytes(content)
