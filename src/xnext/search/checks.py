"""What is checked before a search begins: that which would otherwise fail in every trial."""

import shutil
from pathlib import Path

import torch

from xnext.data import ImageData, PackedSource, Preprocessing, load_data
from xnext.errors import UserError, is_out_of_memory, shorten
from xnext.evaluation.complexity import smallest_image_size, takes
from xnext.models._config import ConfigError
from xnext.models._registry import create_variant
from xnext.search.config import SearchConfig
from xnext.search.space import Space
from xnext.training.setup import require_device

_MOST_BAD = 0.01  # share of images that cannot be read, as in a training


def check_device(config: SearchConfig) -> None:
    """Refuse a GPU, or a precision that needs one, where there is none.

    Raises:
        UserError: As said.
    """
    if config.scheduler is None:  # which knows of others
        require_device(config.device, config.amp)


def check_networks(space: Space, config: SearchConfig, classes: int) -> Preprocessing:
    """Refuse images that some networks cannot take; return how all of them get theirs.

    A network with each value of each choice looks at an image, without computing.

    Args:
        space: Where to look.
        config: Of the search.
        classes: Of the images.

    Raises:
        UserError: The images are too small, a batch is, or the networks do not fit into the memory.
    """
    try:
        architectures = [space.architecture(point, config.width) for point in space.examples]
        first = architectures[0]
        network = create_variant(first.model, first.model_args, num_classes=classes)
    except ConfigError as error:  # the space itself was checked when it was read
        raise UserError(f"width {config.width:g} makes networks that there are not: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"width {config.width:g} makes networks that do not fit into the memory") from error
    preprocessing = Preprocessing.for_model(network, config.image_size, crop_pct=1.0)
    size = config.image_size
    for architecture in architectures:
        with torch.device("meta"):  # where numbers take neither memory nor time
            network = create_variant(architecture.model, architecture.model_args, num_classes=classes)
        if not takes(network.eval(), size):
            size = smallest_image_size(network, first=size + 1)
        if config.batch_size == 1 and size == config.image_size:
            _check_lone_image(network, preprocessing.shape)
    if size > config.image_size:
        raise UserError(
            f"image size {config.image_size} is too small for networks of space {space.name};"
            f" use --image-size {size} or more"
        )
    return preprocessing


def _check_lone_image(network: torch.nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse batches of one image whose maps have one place, which batch norm cannot normalise."""
    try:
        network.train()(torch.empty(1, *shape, device="meta"))
    except ValueError as error:
        raise UserError(
            "batch size 1: batch norm cannot normalise one image of this size; use --batch-size 2 or more"
        ) from error


def check_images(data: ImageData, folder: Path) -> None:
    """Refuse a set of which too many images could not be decoded, of which each trial would complain.

    Args:
        data: The images.
        folder: Where they were decoded to.

    Raises:
        UserError: The line names them; the folder is gone.
    """
    packed = load_data(f"packed:{folder}")
    for part, source, origin in (("training", packed.train, data.train), ("held-out", packed.val, data.val)):
        bad = [] if not isinstance(source, PackedSource) else sorted(source.packed.bad_images)
        if len(bad) > _MOST_BAD * len(source):
            shutil.rmtree(folder)
            names = shorten([origin.name(index) for index in bad])
            raise UserError(
                f"{data.name}: {len(bad)} of {len(source)} {part} images cannot be read ({names}); mend or"
                " remove them"
            )
