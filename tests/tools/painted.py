"""A small folder of images that tests make."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def paint(folder: Path, per_class: int) -> Path:
    """Noisy images of three colours, of varied sizes: a folder for each."""
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = draw.integers(12, 40, 2)
            pixels = np.clip(draw.normal(colour, 40, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder
