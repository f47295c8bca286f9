"""The former name of `trainbox.data`, kept for one version."""

from trainbox.data import (
    Block,
    Coding,
    ColumnSpec,
    Inspect,
    Sparse,
    Table,
    default_names,
    digest,
    digest_coding,
    estimate_bytes,
    find_files,
    log_unread,
    read_blocks,
    read_table,
    take_part,
)

__all__ = [
    "Block",
    "Coding",
    "ColumnSpec",
    "Inspect",
    "Sparse",
    "Table",
    "default_names",
    "digest",
    "digest_coding",
    "estimate_bytes",
    "find_files",
    "log_unread",
    "read_blocks",
    "read_table",
    "take_part",
]
