"""Networks as ONNX files: exported, quantised to 8 bits, and run by onnxruntime.

The input is "images" `[batch, 3, S, S]`, the output "logits" `[batch, classes]`; `batch` may be any
number. onnx and onnxruntime are imported where they are needed, since they may be missing.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from utils.errors import UserError

# From the first with an h-swish of its own to the last that PyTorch's exporter of traces knows.
OPSETS = range(14, 21)
USUAL_OPSET = 17

NEEDED = ("onnx", "onnxruntime")
CPU = torch.device("cpu")


def check_installed(flag: str = "--format onnx") -> None:
    """UserError, naming the `flag` that needs it, when onnx or onnxruntime is missing."""
    for name in NEEDED:
        try:
            __import__(name)
        except ImportError:
            needs = f"{name} is not installed; pip install {' '.join(NEEDED)}"
            raise UserError(f"{flag}: {needs}") from None


# -- files -----------------------------------------------------------------------------------------


def export(
    file: str | BinaryIO, network: nn.Module, images: Tensor, opset: int, any_batch: bool = True
) -> None:
    """Export a network of ordinary layers for inputs like `images`, of any number or of theirs."""
    axes = {name: {0: "batch"} for name in ("images", "logits")} if any_batch else None
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
    with warnings.catch_warnings():
        # it warns of its age, and of choices by shapes, which do not change here
        warnings.simplefilter("ignore")
        # the exporter of traces, since the other one needs one more package
        torch.onnx.export(network, (images,), file, dynamo=False, opset_version=opset, **names)


def write(file: Path, network: nn.Module, image_size: int, opset: int, about: dict) -> None:
    """Export to `file`, with `about` as metadata: texts as they are, all else as JSON."""
    import onnx

    export(str(file), network, torch.zeros(2, 3, image_size, image_size), opset)
    model = onnx.load(file)
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def open_session(model: bytes, device: torch.device = CPU):
    """Open an onnxruntime session on `device`; UserError when onnxruntime cannot use it.

    It has as many threads as PyTorch, which sleep when there is nothing to do: by default they wait
    in a loop after each run, and slow down whatever is measured next.
    """
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        needs = f"this onnxruntime has no {provider}; pip install onnxruntime-gpu"
        raise UserError(f"--device {device}: {needs}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise UserError(f"--device {device}: onnxruntime cannot use {provider} here")
    return session


def runner(file: Path) -> Callable[[Tensor], Tensor]:
    """`run(images [B, 3, S, S]) -> logits [B, classes]` by onnxruntime on the CPU."""
    return runner_of(open_session(file.read_bytes()))


def runner_of(session) -> Callable[[Tensor], Tensor]:
    """The same, of a session of `open_session`."""

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": as_numpy(images)})[0])

    return run


def as_numpy(images: Tensor):
    """The images as onnxruntime takes them."""
    return images.cpu().contiguous().numpy()


# -- 8 bits ----------------------------------------------------------------------------------------


def quantise(source: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Write `source` with weights and activations of 8 bits to `target`.

    Static, per channel, with ranges from `batches` of images. Weights use 7 of the bits: on CPUs
    without VNNI instructions, sums of products of 8 bits would overflow unnoticed.
    """
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.rest = iter(batches)

        def get_next(self) -> dict | None:
            images = next(self.rest, None)
            return None if images is None else {"images": as_numpy(images)}

    ready = target.with_name(target.name + ".ready.onnx")
    try:
        with _quiet():
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            q.quantize_static(
                str(ready), str(target), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
                calibrate_method=q.CalibrationMethod.MinMax, reduce_range=True,
            )  # fmt: skip
    finally:
        ready.unlink(missing_ok=True)
    model = onnx.load(target)
    texts = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice, which is logged by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
