"""Classes of image files, by a checkpoint and by its ONNX file."""

import numpy as np
import pytest
import torch
from PIL import Image

from model.trained import open_own
from tests.support import refused
from tools import export, predict


@pytest.fixture(scope="module")
def checkpoint(net):
    return net / "checkpoints" / "last.pth"


@pytest.fixture(scope="module")
def images(checkpoint, tmp_path_factory) -> list[str]:
    """Files of some test images."""
    folder = tmp_path_factory.mktemp("images")
    found = open_own(checkpoint).test_images().images[:5]
    for number, image in enumerate(found):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return [str(file) for file in sorted(folder.iterdir())]


@torch.inference_mode()
def test_probabilities_are_those_of_the_network(checkpoint, images):
    trained = open_own(checkpoint)
    first = trained.test_images().subset(torch.arange(5))
    [(batch, _)] = trained.batches(first, 5).epoch()
    expected = trained.network(batch).softmax(dim=1)
    view, logits = predict.by_checkpoint(checkpoint)
    torch.testing.assert_close(predict.probabilities(view, logits, images), expected)


def rows(said: str) -> list[list[str]]:
    return [line.split() for line in said.splitlines() if ".png" in line]


@pytest.mark.slow
def test_a_checkpoint_and_its_onnx_file_say_the_same(checkpoint, images, tmp_path, capsys):
    file = tmp_path / "net.onnx"
    export.main(
        ["--checkpoint", str(checkpoint), "--format", "onnx", "--out", str(file), "--runs", "0"]
    )
    capsys.readouterr()
    predict.main([str(checkpoint), *images, "--top", "2"])
    by_network = rows(capsys.readouterr().out)
    predict.main([str(file), *images, "--top", "2"])
    assert rows(capsys.readouterr().out) == by_network
    assert len(by_network) == 2 * len(images)
    assert {len(row) for row in by_network} == {3}


def test_images_of_any_size_and_form_are_brought_to_size(checkpoint, tmp_path):
    pixels = np.zeros((9, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.jpg")
    view, _ = predict.by_checkpoint(checkpoint)
    [(batch, _)] = view.batches([str(tmp_path / "grey.jpg")]).epoch()
    assert batch.shape == (1, 3, view.image_size, view.image_size)
    torch.testing.assert_close(batch[0, :, 0, 0], -torch.tensor(view.mean) / torch.tensor(view.std))


def test_what_cannot_be_predicted_is_a_line(checkpoint, images, tmp_path, capsys):
    (tmp_path / "no.png").write_text("no image")
    (tmp_path / "no.onnx").write_text("no network")
    for network, image, says in (
        (checkpoint, tmp_path / "no.png", "no.png: cannot be read as an image"),
        (checkpoint, tmp_path / "missing.png", "missing.png: cannot be read (No such file"),
        (tmp_path / "missing.onnx", images[0], "missing.onnx: it cannot be read"),
        (tmp_path / "no.onnx", images[0], "no.onnx: onnxruntime cannot read it"),
    ):
        assert says in refused(capsys, predict.main, str(network), str(image))
