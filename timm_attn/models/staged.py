"""The body shared by the networks that timm has no class for: stem, stages of blocks, pooled linear classifier."""

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import checkpoint_seq
from torch import nn

from .._compat import feature_take_indices


class StagedNet(nn.Module):
    """Base of a convolutional classifier: ``conv_stem``, ``bn1``, ``stages``, pooling, ``classifier``.

    A subclass passes the finished stem and stages; everything that timm expects of a model is here.

    Args:
        conv_stem: First convolution.
        bn1: Norm and activation after it.
        stages: One ``nn.Sequential`` of blocks for each stage.
        feature_info: One dict for each feature level, in order: ``num_chs``, ``reduction`` (total stride), ``module``
            (name) and ``stage`` (0 for the stem, n for the n-th stage).
        num_classes: Number of classes, 0 for none.
        in_chans: Number of input channels.
        global_pool: Pooling before the classifier, any of timm's.
        drop_rate: Dropout before the classifier.
        device: Device of the classifier.
        dtype: Type of the classifier.
    """

    def __init__(
        self,
        conv_stem: nn.Module,
        bn1: nn.Module,
        stages: list[nn.Sequential],
        feature_info: list[dict],
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.conv_stem = conv_stem
        self.bn1 = bn1
        self.stages = nn.Sequential(*stages)
        self.feature_info = feature_info
        self.num_features = feature_info[-1]['num_chs']
        self.global_pool, self.classifier = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, device=device, dtype=dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that group the parameters by depth, for layer-wise learning rates."""
        return dict(
            stem=r'^conv_stem|bn1',
            blocks=r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)',
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: recompute each block in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place, on the model's device and in its type.

        Args:
            num_classes: Number of classes, 0 for none.
            global_pool: Pooling type, the present one if None.
        """
        weight = self.conv_stem.weight
        self.num_classes = num_classes
        self.global_pool, self.classifier = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.classifier.train(self.training)

    def _take_stages(self, indices: int | list[int] | None) -> tuple[list[int], list[int], int]:
        """Feature indices -> the indices, the stages they follow, and the last of these stages."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        return take, [self.feature_info[i]['stage'] for i in take], self.feature_info[last]['stage']

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Forward pass that also returns feature maps.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Levels of ``feature_info``: the last n if an int, these if a list, all if None.
            norm: Without effect, every level is normalized.
            stop_early: Do not compute the stages after the last level asked for.
            output_fmt: ``NCHW``.
            intermediates_only: Return the feature maps alone.

        Returns:
            The list of feature maps, after the final map unless ``intermediates_only``.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt {output_fmt!r} is not supported; the feature maps are 'NCHW'.")
        _, take_stages, last_stage = self._take_stages(indices)
        intermediates = []
        x = self.bn1(self.conv_stem(x))
        if 0 in take_stages:
            intermediates.append(x)
        for i, stage in enumerate(self.stages[:last_stage] if stop_early else self.stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in take_stages:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages that the given feature levels do not need.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Without effect, no norm follows the stages.
            prune_head: Remove the classifier even where no stage is removed.

        Returns:
            The kept levels as non-negative indices.
        """
        take, _, last_stage = self._take_stages(indices)
        truncated = last_stage < len(self.stages)
        self.stages = self.stages[:last_stage]
        if truncated:
            self.num_features = self.head_hidden_size = self.feature_info[max(take)]['num_chs']
        if prune_head or truncated:
            self.reset_classifier(0, '')
        return take

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> feature map (B, num_features, H / stride, W / stride)."""
        x = self.bn1(self.conv_stem(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.stages, x, flatten=True)
        return self.stages(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Feature map -> logits (B, num_classes), or the pooled features with ``pre_logits``."""
        x = self.global_pool(x)
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
