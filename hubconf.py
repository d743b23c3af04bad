"""Networks of this project for `torch.hub`.

    torch.hub.load(DIR, "sgnas", source="local", checkpoint="logs/NET/checkpoints/last.pth")
    torch.hub.load(
        DIR, "nsganetv2", source="local", architecture="net.config", checkpoint="net.inherited"
    )

What else is imported is imported inside of functions, where `torch.hub` has already checked
`dependencies`.
"""

dependencies = ["torch", "torchvision", "numpy", "yaml", "PIL", "lmdb", "thop", "tqdm", "msgspec"]


def sgnas(architecture=None, checkpoint=None, **options):
    """A network of SGNAS, or of a cell of NAS-Bench-201, in evaluation mode: images `[B, 3, S, S]`
    -> logits.

    `architecture` is the path of an architecture.json, `checkpoint` that of weights: a checkpoint
    of this project, which describes its network, so that `architecture` may be left out, or a plain
    state dict. Without it the weights are random. `options` are se (bool), activation ("relu6" or
    "hswish"), dropout and drop_path; those of a checkpoint are its own unless they are given. The
    network's `class_names` are those of the checkpoint, None where it says none.
    Raises a ValueError that says what is wrong in one line.
    """
    return _load("sgnas", architecture, checkpoint, options)


def nsganetv2(architecture=None, checkpoint=None, **options):
    """A network of NSGANetV2, a MobileNetV3, in evaluation mode: images `[B, 3, S, S]` -> logits.

    As `sgnas`; `architecture` may also be a published net.config, and `options` are dropout and
    drop_path.
    """
    return _load("nsganetv2", architecture, checkpoint, options)


def _load(paper, architecture, checkpoint, options):
    """The network, which must be one of the `paper`."""
    _check_names()
    from model.trained import load_network

    return load_network(architecture, checkpoint, paper, options)


def _check_names():
    """ImportError when packages of the names of this project's are imported already, but are
    others.
    """
    import sys
    from pathlib import Path

    here = Path(__file__).resolve().parent
    for name in ("model", "utils"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (file is None or Path(file).resolve().parent != here / name):
            other = f"another module named {name!r} is imported already ({file})"
            raise ImportError(f"{other}; load this network first")
