"""Every private name of torch and timm that this package uses, in one place.

Each has its reason. All were checked with torch 2.10.0, 2.14.1 and 2.15.0 and timm 1.0.29 and 1.0.31; a new release is
checked by running the tests with it.
"""

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models._efficientnet_builder import decode_arch_def, resolve_bn_args, round_channels
from timm.models._features import FeatureGetterNet, FeatureHookNet, feature_take_indices
from timm.models._hub import get_cache_dir, hf_split, load_model_config_from_path
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    'BatchNormBase',
    'ConvertsStateDict',
    'FakeTensorMode',
    'FeatureGetterNet',
    'FeatureHookNet',
    'InvertedResidual',
    'TorchDispatchMode',
    'children_by_name',
    'copy_forward_hooks',
    'decode_arch_def',
    'feature_take_indices',
    'get_cache_dir',
    'has_forward_hooks',
    'has_forward_pre_hooks',
    'hf_split',
    'in_function_transform',
    'load_model_config_from_path',
    'operator_of',
    'record_model_args',
    'resolve_bn_args',
    'round_channels',
    'tree_leaves',
]

# timm builds MobileNetV2 from a definition in text (decode_arch_def, round_channels, resolve_bn_args), as every model
# file of timm itself does; the extra blocks of SSDLite are its InvertedResidual; feature_take_indices resolves the
# indices of forward_intermediates the way timm's models do; FeatureGetterNet and FeatureHookNet are what timm's builder
# chooses from by name; get_cache_dir, hf_split and load_model_config_from_path are
# what timm finds pretrained weights with.
#
# FakeTensorMode runs a model without data, to see the shapes of its maps; torch documents it in its notes on fake
# tensors.
#
# BatchNormBase is the only common base of torch's batch norms. TorchDispatchMode and tree_leaves count what a model
# computes; torch documents both in its notes on extending PyTorch, but has not moved them to a public module.


def in_function_transform() -> bool:
    """Whether ``torch.func`` or forward-mode gradients are active: what torch.autograd.Function itself asks."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def operator_of(overload):
    """Operator that an overload belongs to, such as aten.bmm of aten.bmm.default: the key of torch's flop formulas."""
    return overload._overloadpacket


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether the output of a module is seen by a hook; torch has no public function for it."""
    return bool(module._forward_hooks)


def has_forward_pre_hooks(module: nn.Module) -> bool:
    """Whether the input of a module is seen by a hook; torch has no public function for it."""
    return bool(module._forward_pre_hooks)


def copy_forward_hooks(source: nn.Module, target: nn.Module) -> None:
    """Run the forward hooks of one module on another; the public function would need the hooks' own arguments."""
    target.__dict__.update({k: v for k, v in vars(source).items() if k.startswith('_forward_hooks')})


def children_by_name(module: nn.Module) -> dict[str, nn.Module | None]:
    """Children of a module, which may be replaced; ``named_children`` leaves out a child's second name."""
    return module._modules


def record_model_args(model: nn.Module, args: dict) -> None:
    """Add to the arguments that timm 1.0.31 and later write to a model's ``config.json``; others do not look there."""
    model._model_args = {**getattr(model, '_model_args', {}), **args}


class ConvertsStateDict(nn.Module):
    """Module that may rename the tensors of a state dict before they are loaded, also as part of another module.

    The public ``register_load_state_dict_pre_hook`` would have to be registered anew on every copy of a model.
    """

    def convert_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors by key, without prefix -> the same under this module's keys."""
        return state_dict

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        converted = self.convert_state_dict(own)
        if converted.keys() != own.keys():
            for key in own:
                del state_dict[prefix + key]
            state_dict.update({prefix + key: value for key, value in converted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
