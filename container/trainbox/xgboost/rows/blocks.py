"""Blocks of rows on the disk, each a directory of NumPy arrays."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse

from trainbox.data import Table, default_names

#: The features of a block: all cells, or those that a row names.
FEATURES, VALUES, COLUMNS, STARTS = "features.npy", "values.npy", "columns.npy", "starts.npy"

Floats = npt.NDArray[np.float32]


def write_block(spool: Path, number: int, block: Table) -> Path:
    """Write rows as a block; sparse rows stay sparse."""
    directory = spool / f"{number:06d}"
    directory.mkdir()
    features = block.features
    if isinstance(features, np.ndarray):
        np.save(directory / FEATURES, features)
    else:
        for name, part in ((VALUES, features.data), (COLUMNS, features.indices), (STARTS, features.indptr)):
            np.save(directory / name, part)
    np.save(directory / "labels.npy", block.labels)
    if block.weights is not None:
        np.save(directory / "weights.npy", block.weights)
    return directory


def read_block(directory: Path) -> Table:
    """Read a dense block, its features memory-mapped."""
    weights, features = directory / "weights.npy", np.load(directory / FEATURES, mmap_mode="r")
    return Table(
        np.load(directory / "labels.npy"),
        features,
        default_names(features.shape[1]),
        (),
        np.load(weights) if weights.exists() else None,
    )


def is_sparse_block(directory: Path) -> bool:
    """Whether the block has sparse features."""
    return (directory / STARTS).exists()


def read_features(directory: Path, width: int) -> Floats | scipy.sparse.csr_matrix:
    """Read the features of a block, `width` columns wide."""
    if (directory / FEATURES).exists():
        dense: Floats = np.load(directory / FEATURES, mmap_mode="r")
        return dense
    values, columns, starts = (np.load(directory / name) for name in (VALUES, COLUMNS, STARTS))
    return scipy.sparse.csr_matrix((values, columns, starts), shape=(len(starts) - 1, width))
