"""timm's optimisers by a config, and their state across a stop."""

from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import nn
from torch.optim import Optimizer

from xnext.errors import UserError
from xnext.training.config import TrainConfig

# What a config says of a group of weights; the rest of its entries is the optimiser's own.
_CONFIGURED = ("initial_lr", "lr_scale", "weight_decay", "momentum", "eps", "betas")


def build_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """Return the optimiser of a resolved config over all parameters; norms and biases do not decay.

    Raises:
        UserError: The optimiser does not take one of the config's values.
    """
    info = get_optimizer_info(config.optimizer)
    options = {"momentum": config.momentum, "eps": config.opt_eps, "betas": config.opt_betas}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if not getattr(info, f"has_{name}"):  # timm would pass over it
            raise UserError(f"optimizer {config.optimizer} has no {name}; leave the option out")
    if config.layer_decay is not None:
        given["layer_decay"] = config.layer_decay
    try:
        optimizer = create_optimizer_v2(
            model, opt=config.optimizer, lr=config.peak_lr, weight_decay=config.weight_decay, **given
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {config.optimizer}: {error}; change its options") from error
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"optimizer {config.optimizer} needs second derivatives; choose another")
    return optimizer


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser the averages and counters of a saved state, and leave it what its config says."""
    configured = [
        {key: group[key] for key in _CONFIGURED if key in group} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)
