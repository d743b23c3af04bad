"""From a config to objects: the join that the stages share."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from torch import nn

from model.costs.latency import Latencies, UnifiedLatency
from model.costs.lookup_table import CostTable, HardwareLoss, LookUpTable
from model.sgnas.generator import PriorPool
from model.spaces.elastic.space import ElasticSpace
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.elastic.supernet import from_published as once_for_all
from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet, from_published
from utils import checkpoint
from utils.config import Config
from utils.engine import DeviceContext, Recipe
from utils.errors import UserError
from utils.images import Images
from utils.loader import Augmentation, Loader, Normalisation, loader
from utils.optim import Schedule, make_optimizer
from utils.runtime import stream


def build_space(config: Config) -> UnifiedSpace | CellSpace:
    """The search space of a config with targets; UserError when the space cannot reach them."""
    if config.supernet in ("elastic", "none"):
        raise UserError(
            f"supernet: {config.supernet}: this needs a config of a supernet with a generator"
        )
    if config.supernet == "nasbench201":
        space = CellSpace(
            config.cell.channels, config.cell.cells, config.cell.image_size, config.classes
        )
    else:
        space = build_unified_space(config)
    table = build_cost_table(config, space)
    least, most = table.reach()
    for key in ("low_flops", "high_flops"):
        if not least <= getattr(config, key) <= most:
            reach = f"this space reaches {least:.2f} to {most:.2f} {table.unit}"
            raise UserError(f"{key}: {getattr(config, key):g} {table.unit}; {reach}")
    return space


def build_cost_table(config: Config, space: UnifiedSpace | CellSpace) -> CostTable:
    """What the targets of a config are in: multiply-adds, or milliseconds by its table."""
    if config.cost == "flops":
        return LookUpTable(space)
    if not isinstance(space, UnifiedSpace):
        raise UserError(
            f"cost: {config.cost}: generators are trained for it in unified spaces only"
        )
    return UnifiedLatency(Latencies.read(config.latency_table), space, config.se, config.activation)


def build_unified_space(config: Config) -> UnifiedSpace:
    """The layers of `l_cfgs`; UserError when the config is of another supernet."""
    if config.supernet != "unified":
        raise UserError(f"supernet: {config.supernet}: this needs a config of the unified supernet")
    layers, channels = [], config.first_channels
    for index, row in enumerate(config.l_cfgs):
        residual = row.stride == 1 and row.out_channels == channels
        may_vanish = row.skip and residual and index not in config.static_layers
        layers.append(
            LayerSpec(
                channels,
                row.out_channels,
                row.stride,
                row.expansion,
                row.kernels,
                row.skip,
                may_vanish,
                row.se,
            )
        )
        channels = row.out_channels
    return UnifiedSpace(
        layers=tuple(layers),
        image_size=config.input_size,
        classes=config.classes,
        stem_channels=config.stem_channels,
        stem_stride=config.stem_stride or (1 if config.input_size < 64 else 2),
        first_channels=config.first_channels,
        head_channels=config.head_channels,
        min_expansion=config.min_expansion,
    )


def build_elastic_space(config: Config) -> ElasticSpace:
    """The elastic space of a config."""
    keys = asdict(config.elastic)
    if len(keys["head"]) != 2:
        raise UserError(f"elastic.head: {list(keys['head'])}: expected two numbers of channels")
    return ElasticSpace(**keys, classes=config.classes)


Supernet = UnifiedSupernet | CellSupernet | ElasticSupernet


def build_supernet(config: Config) -> Supernet:
    """The supernet of a config, with its first weights."""
    rng = stream(config.seed, "supernet")
    if config.supernet == "none":
        raise UserError("supernet: none: this needs a config of a supernet")
    if config.supernet == "elastic":
        return ElasticSupernet(build_elastic_space(config), rng)
    space = build_space(config)
    if config.supernet == "nasbench201":
        return CellSupernet(space, rng, config.cell.supernet_cells, config.input_size)
    return UnifiedSupernet(space, rng, config.alignment)


def load_supernet(supernet: Supernet, path: str) -> None:
    """Weights of a supernet checkpoint, ours or a published release's; UserError when it is
    neither.
    """
    state = checkpoint.weights(checkpoint.load(path), path)
    if isinstance(supernet, ElasticSupernet):
        state = once_for_all(state)
    elif any(".depthwise.blocks.0.blocks." in key for key in state):
        state = from_published(supernet.space, state)
    checkpoint.load_into(supernet, state, path)


def load_published_elastic(path: str, classes: int | None, fine_tuned: bool) -> ElasticSupernet:
    """A once-for-all supernet by its checkpoint alone: one of ours says its space, a published one
    shows its width.

    UserError when it was trained for another number of classes, unless candidates are to be
    `fine_tuned` with a classifier of their own.
    """
    payload = checkpoint.load(path)
    state = once_for_all(checkpoint.weights(payload, path))
    if "space" in payload:
        try:
            space = ElasticSpace.from_dict(payload["space"])
        except (TypeError, AttributeError):
            raise UserError(
                f"{path}: no elastic supernet; --cfg must name the config of another kind"
            ) from None
    else:
        stem, head = state.get("first_conv.conv.weight"), state.get("classifier.linear.weight")
        widths = {ElasticSpace(width=width).channels[0]: width for width in (1.0, 1.2)}
        if stem is None or head is None or len(stem) not in widths:
            raise UserError(f"{path}: no once-for-all supernet of width 1.0 or 1.2")
        space = ElasticSpace(width=widths[len(stem)], classes=len(head))
    if classes not in (None, space.classes) and not fine_tuned:
        raise UserError(
            f"--n_classes {classes}: {path} has {space.classes}; --n_epochs above 0 fine-tunes for others"
        )
    supernet = ElasticSupernet(space)
    checkpoint.load_into(supernet, state, path)
    return supernet.eval()


def prior_pool(config: Config, table: CostTable, run_file: Path | None) -> PriorPool:
    """The pool of the run being continued, else that in `path_to_prior_pool`, else a new one."""
    for path in (run_file, config.path_to_prior_pool):
        if path and Path(path).exists():
            print(f"prior pool from {path}")
            pool = PriorPool.load(path, table.space)
            pool.check(table, str(path))
            return pool
    rng = stream(config.seed, "prior pool")
    low, high, size = config.low_flops, config.high_flops, config.pool_size
    return PriorPool.build(table, low, high, size, rng, config.pool_chain, config.pool_tolerance)


def build_hardware_loss(config: Config) -> HardwareLoss:
    return HardwareLoss(
        config.alpha,
        config.loss_penalty,
        config.cost_tolerance,
        config.cost_unit,
        relative=config.hardware_loss == "relative",
    )


def search_loader(images: Images, config: Config, purpose: str, training: bool) -> Loader:
    """Batches for a part of the search; each `purpose` has random streams of its own."""
    augment = Augmentation(config.crop_padding, config.horizontal_flip) if training else None
    normalise = Normalisation(config.mean, config.std)
    seed = stream(config.seed, purpose).initial_seed()
    return loader(images, config.batch_size, normalise, augment, seed, config.num_workers)


def build_recipe(
    parameters: Iterable[nn.Parameter],
    steps_per_epoch: int,
    config: Config,
    context: DeviceContext,
    purpose: str,
    checkpoint: Path,
    **options,
) -> Recipe:
    """How supernet warm-up and training from scratch learn; `purpose` names their random streams,
    `options` go on.
    """
    schedule = Schedule(
        config.lr_scheduler,
        config.optim_state.lr,
        config.epochs,
        steps_per_epoch,
        config.step_size,
        config.decay_ratio,
        config.lr_warmup_steps,
    )
    return Recipe(
        nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        make_optimizer(parameters, config.optim_state),
        schedule,
        context,
        (config.seed, purpose),
        checkpoint,
        config.clip_grad,
        **options,
    )
