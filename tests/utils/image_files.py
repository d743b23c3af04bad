"""Small folders of images that the tests of reading them share."""

import numpy as np
import torch
from PIL import Image

from utils.data import load_dataset
from utils.images import ImageData
from utils.loader import Normalisation

PLAIN = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def coded_images(count, size=6):
    """Images whose pixels say which image they belong to."""
    codes = torch.arange(count, dtype=torch.uint8)[:, None, None, None]
    return ImageData(codes.repeat(1, 3, size, size), torch.arange(count) % 5)


def write_folder(root, classes=3, images=4, size=(20, 12)):
    random = np.random.RandomState(0)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(images):
            pixels = random.randint(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")


def write_parts(root, size=(90, 90)):
    """Three classes: four images of each in train/, two in val/."""
    for part, images in (("train", 4), ("val", 2)):
        write_folder(root / part, images=images, size=size)
    return root


def read(root, size=80):
    return load_dataset("imagefolder", str(root), size, 3)
