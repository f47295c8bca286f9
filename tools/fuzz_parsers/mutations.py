"""Pure: what a seed makes of honest bytes. The same seed, corpus and number give the same input on every machine."""

from collections.abc import Callable, Sequence
from random import Random

#: Inputs are small: what is found with them is found in a file of any size.
LARGEST_INPUT = 64 * 1024
_NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**20,
    2**29 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**64 - 1,
)
_DIGITS = (b"0", b"-1", b"1e999", b"-0", b"1" * 40, b"NaN", b"9" * 5000, b"2147483648", b"0x10", b"1_000", b"\xd9\xa1")
_PLACES = 4
_ALL_CHANCE, _ALL_WORDS = 0.04, 0.12

Change = Callable[[bytearray, Sequence[bytes], Random], None]


def draw(seed: str, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Draw one input: most are honest bytes with a few changes, some are words of the format or nothing but chance.

    Args:
        seed: Decides everything.
        corpus: Honest inputs.
        words: Of the format, for what chance would not find.
    """
    random = Random(seed)  # noqa: S311 - no secret
    chance = random.random()
    if chance < _ALL_CHANCE:
        return random.randbytes(random.randrange(200))
    if chance < _ALL_WORDS and words:
        return b"".join(random.choice(words) for _ in range(random.randrange(1, 40)))
    content = bytearray(random.choice(corpus))
    changes: Sequence[Change] = (_CHANGES, (*_CHANGES, *[_word] * 4))[bool(words)]
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        if random.choice(changes) is _word:
            _word(content, words, random)
        else:
            random.choice(_CHANGES)(content, corpus, random)
    return bytes(content[:LARGEST_INPUT])


def _place(content: bytearray, random: Random) -> int:
    """Ends are where lengths and magic numbers are: one place in four is near one of them."""
    size = len(content)
    near = random.randrange(_PLACES * _PLACES)
    return min(random.choice((near, max(size - near, 0), *[random.randrange(size + 1)] * 6)), size)


def _flip(content: bytearray, _corpus: Sequence[bytes], random: Random) -> None:
    at = _place(content, random)
    content[at : at + 1] = bytes(byte ^ 1 << random.randrange(8) for byte in content[at : at + 1])


def _put(content: bytearray, _corpus: Sequence[bytes], random: Random) -> None:
    at, new = _place(content, random), random.randbytes(random.randrange(1, 9))
    content[at : at + len(new)] = new


def _insert(content: bytearray, _corpus: Sequence[bytes], random: Random) -> None:
    at = _place(content, random)
    content[at:at] = random.choice((b"\0", b"\xff", b"\n", b'"', b"\xed\xa0\x80", random.randbytes(4)))


def _number(content: bytearray, _corpus: Sequence[bytes], random: Random) -> None:
    at, size = _place(content, random), random.choice((1, 2, 4, 8))
    content[at : at + size] = (random.choice(_NUMBERS) % 2 ** (8 * size)).to_bytes(
        size, random.choice(("little", "big"))
    )


def _digits(content: bytearray, _corpus: Sequence[bytes], random: Random) -> None:
    places = [at for at, byte in enumerate(content[:LARGEST_INPUT]) if byte in b"0123456789"]
    if places:
        at = random.choice(places)
        content[at : at + 1] = random.choice(_DIGITS)


def _cut(content: bytearray, _corpus: Sequence[bytes], random: Random) -> None:
    at = _place(content, random)
    del content[at : at + random.choice((1, 2, 4, 16, len(content)))]


def _repeat(content: bytearray, _corpus: Sequence[bytes], random: Random) -> None:
    at = _place(content, random)
    piece = content[at : at + random.choice((1, 4, 32, 256))]
    content[at:at] = piece * random.choice((1, 2, 50))


def _splice(content: bytearray, corpus: Sequence[bytes], random: Random) -> None:
    other = random.choice(corpus)
    at, start = _place(content, random), random.randrange(len(other) + 1)
    content[at : at + random.choice((0, 8, 64))] = other[start : start + random.choice((4, 32, 1024))]


def _word(content: bytearray, words: Sequence[bytes], random: Random) -> None:
    word, at = random.choice(words), _place(content, random)
    known = content.find(random.choice(words), at)  # in the place of another word, where there is one
    at = at if known < 0 else known
    content[at : at + random.choice((0, len(word)))] = word


_CHANGES: tuple[Change, ...] = (_flip, _put, _insert, _number, _digits, _cut, _repeat, _splice)
