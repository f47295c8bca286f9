"""1,797 images of handwritten digits, for jobs that learn something in seconds."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def write_digits(directory: Path) -> list[str]:
    """Write the channels `train` and `validation`; gives the flags that name them."""
    images, labels = load_digits(return_X_y=True)
    pixels = images.reshape(-1, 8, 8).astype(np.uint8)
    flags = []
    for name, part in (("train", slice(0, 1400)), ("validation", slice(1400, None))):
        (directory / name).mkdir()
        np.savez(directory / name / "digits.npz", images=pixels[part], labels=labels[part])
        flags += ["--channel", f"{name}={directory / name}"]
    return flags
