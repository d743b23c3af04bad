"""Networks as ONNX files: written, quantised to 8 bits, and run by onnxruntime.

The input is "images" `[batch, 3, S, S]`, the output "logits" `[batch, classes]`; `batch` may be any
number.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError

# From the first with an h-swish of its own to the last that PyTorch's exporter of traces knows.
OPSETS = range(14, 21)
USUAL_OPSET = 17

NEEDED = ("onnx", "onnxruntime")


def check_installed() -> None:
    """UserError when onnx or onnxruntime is missing."""
    for name in NEEDED:
        try:
            __import__(name)
        except ImportError:
            raise UserError(
                f"--format onnx: {name} is not installed; pip install {' '.join(NEEDED)}"
            ) from None


def write(file: Path, network: nn.Module, image_size: int, opset: int, about: dict) -> None:
    """Write a network of ordinary layers, with `about` as metadata: texts as they are, all else as
    JSON.
    """
    import onnx

    images = torch.zeros(2, 3, image_size, image_size)
    batch = {"images": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        # it warns of its age, and of choices by shapes, which do not change here
        warnings.simplefilter("ignore")
        # the exporter of traces, since the other one needs one more package
        torch.onnx.export(
            network, (images,), str(file), dynamo=False, opset_version=opset,
            input_names=["images"], output_names=["logits"], dynamic_axes=batch,
        )  # fmt: skip
    model = onnx.load(file)
    _describe(model, about)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def _describe(model, about: dict) -> None:
    import onnx

    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()
    }
    onnx.helper.set_model_props(model, texts)


def session_options():
    """Of onnxruntime: as many threads as PyTorch has, which sleep when there is nothing to do.

    By default they wait in a loop after each run, and slow down whatever is measured next to it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def runner(file: Path) -> Callable[[Tensor], Tensor]:
    """`run(images [B, 3, S, S]) -> logits [B, classes]` by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        file.read_bytes(), session_options(), providers=["CPUExecutionProvider"]
    )

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])

    return run


# -- 8 bits ----------------------------------------------------------------------------------------


def quantise(source: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Write `source` with weights and activations of 8 bits: static, per channel, ranges by
    `batches` of images.

    Weights use 7 of the bits: on CPUs without VNNI instructions, sums of products of 8 bits would
    overflow unnoticed.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = target.with_name(target.name + ".ready.onnx")
    try:
        with _quiet():
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready), str(target), _reader(batches), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax, reduce_range=True,
            )  # fmt: skip
    finally:
        ready.unlink(missing_ok=True)
    model = onnx.load(target)
    _describe(model, {entry.key: entry.value for entry in onnx.load(source).metadata_props})
    onnx.save(model, target)


def _reader(batches: Iterable[Tensor]):
    """What onnxruntime calibrates by."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(batches)

        def get_next(self) -> dict | None:
            images = next(self.rest, None)
            return None if images is None else {"images": images.contiguous().numpy()}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice, which is logged by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
