"""What all networks share: timm's contract over a stem, stages and a head."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xnext.models._config import ConfigError
from xnext.models.layers import NORMS, ClassifierHead


class Stage(nn.Module):
    """Blocks of one resolution, after an optional change of resolution.

    Args:
        blocks: The blocks, in order.
        downsample: What runs before them, or None.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample or nn.Identity()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for block in self.blocks:
                x = _checkpoint(block, x)
            return x
        return self.blocks(x)


@torch.jit.ignore
def _checkpoint(block: nn.Module, x: Tensor) -> Tensor:
    """Run a block that keeps its input alone and computes the rest again for the backward pass."""
    if torch.compiler.is_compiling():  # which leaves the statistics out of what it computes again by itself
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _without_statistics(block))
    )


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms count a batch that they see a second time only once."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


class Network(nn.Module):
    """Stem, stages and classifier head, with the interface that timm's tools expect of a network.

    Args:
        config: The frozen config of the lineage, kept as ``config``.
        stem: Named layers from the image to the first features.
        stages: The stages; each is a feature level.
        feature_info: A dict a level with ``num_chs``, ``reduction`` and ``module``; one more than there
            are stages where the stem is a level too.
        head: The classifier head.
        num_classes: Size of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
    """

    def __init__(
        self,
        config: Any,
        stem: "OrderedDict[str, nn.Module]",
        stages: Sequence[Stage],
        feature_info: list[dict[str, Any]],
        head: ClassifierHead,
        *,
        num_classes: int,
        in_chans: int,
    ):
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stem = nn.Sequential(stem)
        self.stages = nn.Sequential(*stages)
        self.feature_info = feature_info
        self.stem_is_feature = len(feature_info) > len(stages)
        self.num_features: int = feature_info[-1]["num_chs"]
        self.head = head
        self.head_hidden_size = head.num_features

    @property
    def global_pool(self) -> str:
        """The pooling of the head, as timm names it."""
        return self.head.global_pool.pool_type

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns that order the parameters for layer-wise learning rates."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the blocks' activations in the backward pass."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return names beyond biases, norms and LayerScale (which timm finds by shape): none."""
        return set()

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """Make a new classifier of ``num_classes`` (0: none) and change the pooling if one is named.

        Args:
            num_classes: Its size.
            global_pool: As timm names it; None keeps the pooling.
            reset_other: Drop the norm and the hidden layers between pooling and classifier, too.

        Raises:
            ValueError: The new pooling does not fit the layers after it; nothing is changed.
        """
        if num_classes < 0:
            raise ConfigError(f"num_classes={num_classes!r} must be 0, for no classifier, or more")
        self._reset_head(num_classes, global_pool, reset_other=reset_other)

    def _reset_head(self, num_classes: int, global_pool: str | None, **changes: Any) -> None:
        like = next(self.parameters())
        self.head.reset(num_classes, global_pool, device=like.device, dtype=like.dtype, **changes)
        self.num_classes = num_classes
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final features and those of chosen levels.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Levels of ``feature_info``: the last n, a list, or all.
            norm: Taken for timm's sake; no network here has a norm between last stage and head.
            stop_early: Leave out the stages after the last chosen level.
            output_fmt: "NCHW", the only one.
            intermediates_only: Return the chosen levels alone.
        """
        assert output_fmt == "NCHW", "the features are NCHW"
        offset = 1 if self.stem_is_feature else 0
        take_indices, max_index = feature_take_indices(len(self.stages) + offset, indices)
        intermediates: list[Tensor] = []
        x = self.stem(x)
        if self.stem_is_feature and 0 in take_indices:
            intermediates.append(x)
        # TorchScript cannot slice a Sequential.
        if torch.jit.is_scripting() or not stop_early:
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1 - offset]
        for i, stage in enumerate(stages):
            x = stage(x)
            if i + offset in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut off what the chosen levels do not need, as timm's feature extractor does.

        Args:
            indices: As in ``forward_intermediates``.
            prune_norm: Taken for timm's sake; there is no such norm.
            prune_head: Cut off the head even if the last level is kept.

        Returns:
            The chosen levels, counted from the first.
        """
        offset = int(self.stem_is_feature)
        levels = len(self.stages) + offset
        take_indices, max_index = feature_take_indices(levels, indices)
        cut = max_index < levels - 1
        if cut:
            self.stages = self.stages[: max_index + 1 - offset]
            self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_head or cut:
            self._reset_head(0, "avg", in_features=self.num_features)
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to the last stage's features."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits, or to what enters the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


BlockFactory = Callable[[int, int, int, float], nn.Module]


def build_pyramid(
    dims: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[int],
    norm: str,
    make_block: BlockFactory,
    *,
    drop_path_rate: float = 0.0,
    output_stride: int | None = None,
    **dd: Any,
) -> tuple[list[Stage], list[dict[str, Any]]]:
    """Build ConvNeXt's macro structure: stages of equal blocks with a norm and a convolution between them.

    Args:
        dims: Channels a stage.
        depths: Blocks a stage.
        strides: Stride of the stem, then that before each further stage; 1 puts nothing between.
        norm: Name in ``NORMS``.
        make_block: Called with stage, channels, dilation and drop path rate.
        drop_path_rate: That of the last block; it rises linearly from 0 over all blocks.
        output_stride: Where the total stride reaches it, further strides become dilation; None: never.
        **dd: Device and dtype.

    Returns:
        The stages and their ``feature_info``.
    """
    rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
    stages: list[Stage] = []
    feature_info: list[dict[str, Any]] = []
    reduction, dilation = strides[0], 1
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        downsample = None
        if i > 0 and (strides[i] > 1 or dims[i - 1] != dim):
            stride = strides[i]
            # The convolution still samples at the earlier dilation, the blocks at the new one.
            conv_dilation = dilation
            if output_stride and reduction >= output_stride:
                dilation, stride = dilation * stride, 1
            downsample = _downsample(dims[i - 1], dim, strides[i], stride, conv_dilation, norm, **dd)
            reduction *= stride
        blocks = [make_block(i, dim, dilation, rates.pop(0)) for _ in range(depth)]
        stages.append(Stage(blocks, downsample))
        feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
    return stages, feature_info


def _downsample(
    in_dim: int, out_dim: int, kernel_size: int, stride: int, dilation: int, norm: str, **dd: Any
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(norm=NORMS[norm](in_dim, **dd))
    if stride < kernel_size:
        # An even kernel at stride 1 keeps the size only with one border wider than the other.
        total = dilation * (kernel_size - 1)
        before, after = total // 2, total - total // 2
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
    layers["conv"] = nn.Conv2d(in_dim, out_dim, kernel_size, stride=stride, dilation=dilation, **dd)
    return nn.Sequential(layers)
