"""A model in the binary format of XGBoost before 3.1, which no XGBoost here writes."""

import struct


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def stump(objective: str, *, base_score: float, major: int) -> bytes:
    """A model of one tree, which asks whether the first of two features is below 0.5."""
    nodes = struct.pack("<iiiIf", -1, 1, 2, 0x80000000, 0.5)
    nodes += struct.pack("<iiiIf", -(2**31), -1, -1, 0, -0.25) + struct.pack("<iiiIf", 0, -1, 0, 0, 0.75)
    statistics = b"".join(struct.pack("<fffi", 1.0, 2.0, 0.5, 0) for _ in range(3))
    return b"".join(
        [
            struct.pack("<fIiiiIII104x", base_score, 2, 0, 1, 0, major, 0, 0),
            text(objective),
            text("gbtree"),
            struct.pack("<iiiiqii128x", 1, 1, 2, 0, 0, 1, 0),
            struct.pack("<6i124x", 1, 3, 0, 1, 2, 0),
            nodes,
            statistics,
            struct.pack("<i", 0),
            struct.pack("<Q", 1) + text("note") + text("é"),
        ]
    )
