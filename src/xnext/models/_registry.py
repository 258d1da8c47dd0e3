"""Names: a table of configs becomes timm entry points; models are made and listed by name."""

import fnmatch
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError
from timm.models import _registry as timm_registry
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from xnext._hub import hub_access
from xnext.errors import UserError, suggest
from xnext.models._checkpoints import convert_state_dict
from xnext.models._config import ConfigError, UnknownOptionError

_CONFIGS: dict[str, Any] = {}
_NETWORK_OPTIONS = (
    "num_classes",
    "in_chans",
    "global_pool",
    "drop_rate",
    "drop_path_rate",
    "device",
    "dtype",
)
# What timm's builder itself takes, beside the network's options.
_BUILDER_OPTIONS = (
    "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir",
    "features_only", "out_indices", "feature_cls", "feature_cfg",
)  # fmt: skip


def weights(**values: Any) -> dict[str, Any]:
    """Return the metadata of a published weight file, or of a network that has none.

    Args:
        **values: Fields of timm's ``PretrainedCfg``: where the file is and the preprocessing it expects.
    """
    common = {
        "num_classes": 1000,
        "interpolation": "bicubic",
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "apache-2.0",
    }
    return common | values


def register_variants(
    module: str,
    network: type[nn.Module],
    configs: Mapping[str, Any],
    default_cfgs: Mapping[str, dict[str, Any]],
    options: tuple[str, ...] = (),
) -> None:
    """Register each config as a timm model.

    Args:
        module: Module of the lineage; timm looks for its ``default_cfgs`` and files the names under it.
        network: Class that takes the config as ``cfg``.
        configs: Config by model name.
        default_cfgs: Weight metadata by "name" or "name.tag".
        options: Keywords of the network's constructor beyond the common ones.
    """
    scope = sys.modules[module]
    scope.default_cfgs = generate_default_cfgs(dict(default_cfgs))  # type: ignore[attr-defined]
    for name, config in configs.items():
        entry_point = _entry_point(name, network, config, (*_NETWORK_OPTIONS, *options))
        entry_point.__module__ = module
        setattr(scope, name, entry_point)
        with warnings.catch_warnings():
            # timm keeps `xception` as a deprecated alias of `legacy_xception`; here it is the network.
            warnings.filterwarnings("ignore", message=f"Overwriting {name} in registry", category=UserWarning)
            register_model(entry_point)
        timm_registry._deprecated_models.pop(name, None)
        _CONFIGS[name] = config


def _entry_point(name: str, network: type[nn.Module], config: Any, options: tuple[str, ...]) -> Any:
    config_fields = {field.name for field in fields(config)}

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        _check_options(name, kwargs, {*config_fields, *options, *_BUILDER_OPTIONS})
        if kwargs.get("in_chans", 1) < 1 or kwargs.get("num_classes", 0) < 0:
            raise ConfigError("in_chans must be at least 1, num_classes at least 0")
        changes = {key: kwargs.pop(key) for key in config_fields & kwargs.keys()}
        variant = replace(config, **changes)
        _check_levels(name, variant.num_levels, kwargs.get("out_indices"))
        feature_cfg = {"flatten_sequential": True, "out_indices": tuple(range(variant.num_levels))}
        feature_cfg |= kwargs.pop("feature_cfg", {})
        if pretrained:
            _check_published(name, kwargs)
        try:
            with hub_access() if pretrained else nullcontext():
                return build_model_with_cfg(
                    network, name, pretrained,
                    model_cfg=variant,
                    pretrained_filter_fn=convert_state_dict,
                    feature_cfg=feature_cfg,
                    **kwargs,
                )  # fmt: skip
        except _DOWNLOAD_ERRORS as error:
            if not pretrained:
                raise
            raise _download_error(name, kwargs, error) from error

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = f"Build ``{name}``; keywords are the network's options and fields of its config."
    return entry_point


def _check_options(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            hint = suggest(key, known) or f" There are {', '.join(sorted(known))}."
            raise UnknownOptionError(f"{name} has no option {key!r}.{hint}")


def _check_levels(name: str, levels: int, chosen: int | Sequence[int] | None) -> None:
    """Raise a ``ConfigError`` if ``out_indices`` name feature levels that the network does not have."""
    if isinstance(chosen, int):
        chosen = range(-chosen, 0)
    for level in chosen or ():
        if not -levels <= level < levels:
            raise ConfigError(f"{name} has feature levels 0 to {levels - 1}, not {level}; change out_indices")


# The hub raises the second for an answer, the first for none; a file that cannot be read is the first too.
# The third is timm's where it cannot use the installed hub client, and PyTorch's for weights that do not fit.
_DOWNLOAD_ERRORS = (OSError, HfHubHTTPError, RuntimeError)


def _source(name: str, kwargs: Mapping[str, Any]) -> Any:
    return resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))


def _check_published(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise a ``UserError`` that says where weights come from if no hub has any for ``name``."""
    source = _source(name, kwargs)
    if source.has_weights or source.state_dict:
        return
    where = f"; the authors' files are at {source.origin_url}" if source.origin_url else ""
    raise UserError(
        f"no hub has weights for {name}{where}: pass a file with xnext.load_checkpoint(model, PATH), "
        "or --checkpoint PATH on the command line"
    )


def _download_error(name: str, kwargs: Mapping[str, Any], error: Exception) -> UserError:
    source = _source(name, kwargs)
    if source.file:
        return UserError(f"cannot load {source.file}: {error}")
    url = source.url
    if source.hf_hub_id:
        url = f"https://huggingface.co/{source.hf_hub_id}/resolve/main/model.safetensors"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"cannot download the weights of {name} ({reason}): fetch {url} elsewhere and pass it with "
        "xnext.load_checkpoint(model, PATH), or --checkpoint PATH on the command line"
    )


def create_model(model_name: str, **kwargs: Any) -> nn.Module:
    """Build a network by name, exactly as ``timm.create_model`` does.

    Args:
        model_name: A name of ``list_models()``, with a weight tag behind a dot if wanted, or any of timm's.
        **kwargs: What ``timm.create_model`` takes, and the fields of the lineage's config.

    Raises:
        UserError: There is no such name, option or choice; the line gives the nearest ones.
    """
    name = _require_model(model_name)
    for key in kwargs:
        # timm leaves out keywords that are None, which would silently do nothing here.
        if kwargs[key] is None and name in _CONFIGS and getattr(_CONFIGS[name], key, None) is not None:
            raise ConfigError(
                f"{key} of {name} cannot be None; leave it out for {getattr(_CONFIGS[name], key)!r}"
            )
    of_hub = bool(kwargs.get("pretrained")) and name not in _CONFIGS  # ours see to that themselves
    if of_hub:
        _check_published(model_name, kwargs)
    try:
        with hub_access() if of_hub else nullcontext():
            return timm.create_model(model_name, **kwargs)
    except _DOWNLOAD_ERRORS as error:
        if "Invalid pretrained tag" in str(error):
            raise UserError(f"{name} has no weights tagged {model_name.partition('.')[2]!r}") from error
        if not of_hub:
            raise
        raise _download_error(model_name, kwargs, error) from error


def _require_model(model_name: str) -> str:
    """Return the name without the weight tag, once it is known that there is such a model."""
    name = model_name.partition(".")[0]
    if ":" not in model_name and "/" not in model_name and not timm.is_model(name):
        raise UserError(f"unknown model {name!r}.{_nearest(name)}")
    return name


def _nearest(name: str) -> str:
    return suggest(name, [*list_models(), *timm.list_models()]) or " `xnext models` lists them."


def create_variant(model_name: str, model_args: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build a network from what a file says of it: its name and the fields of its config that differ.

    Args:
        model_name: As in ``create_model``.
        model_args: Fields of the config; of timm's own networks, which have none, nothing.
        **options: Further keywords of ``create_model``; 0 stands for leaving one out.

    Raises:
        UserError: As from ``create_model``, or ``model_args`` hold something else than fields.
    """
    name = model_name.partition(".")[0]
    if not timm.is_model(name):
        raise UserError(f"unknown model {model_name!r}.{_nearest(model_name)}")
    if name in _CONFIGS:
        _check_options(name, model_args, [field.name for field in fields(_CONFIGS[name])])
    elif model_args:
        raise UnknownOptionError(f"{name} is timm's own and takes no model_args; leave them out")
    options = {key: value for key, value in options.items() if value or key == "num_classes"}
    try:
        return create_model(model_name, **model_args, **options)
    except TypeError as error:  # timm's networks do not all take the same options
        if name in _CONFIGS:
            raise
        raise UserError(f"{name} of timm's cannot be built with these options: {error}") from error


def list_models(filter: str = "*") -> list[str]:
    """Return the names of this project's networks that match a wildcard pattern, sorted."""
    return sorted(fnmatch.filter(_CONFIGS, filter))


def get_config(name: str) -> Any:
    """Return the config that ``name`` stands for."""
    if not isinstance(name, str) or name not in _CONFIGS:
        raise UserError(f"unknown model {name!r}.{suggest(name, _CONFIGS) or ' `xnext models` lists them.'}")
    return _CONFIGS[name]
