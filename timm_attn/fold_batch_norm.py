"""The form of a model for inference: its batch norms folded into the convolutions before them."""

import copy
from collections import OrderedDict

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from ._compat import (
    BatchNormBase,
    TorchDispatchMode,
    children_by_name,
    copy_forward_hooks,
    has_forward_hooks,
    has_forward_pre_hooks,
    tree_leaves,
)

# Exactly these classes: a subclass may compute anything, such as weights that are standardised or parametrised.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
_NORM_ACTS = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d, *_NORM_ACTS)


@torch.no_grad()
def optimize(model: nn.Module, input_size: tuple[int, ...] | None = None, portable: bool = False) -> nn.Module:
    """Copy a model for inference, with its batch norms folded into the convolutions before them.

    A batch norm is folded where it directly follows a convolution, attention layers included; of timm's norms with an
    activation, the activation stays. It is left alone where the convolution or its output has another use, or a hook;
    where the convolution computes its weights (standardisation, parametrisations); and where the norm has no running
    statistics. Usage, before ``torch.compile`` or an export::

        model = timm.create_model('mbv2_ca', pretrained=True).eval()
        fast = optimize(model)
        logits = fast(images)  # as model(images), up to rounding

    Args:
        model: Model in evaluation mode, of this package or another. It is not changed.
        input_size: Channels, height and width of an image that the model takes. By default the channels of its first
            convolution, and height and width from its ``pretrained_cfg``, which timm's models have.
        portable: Replace the operator of this package in CSA by PyTorch's own operations, for converters and runtimes
            that know only those: OpenVINO or Core ML from an exported program, AOTInductor without Python. It needs
            more time and memory. Traces, scripts and ONNX files have that form in any case.

    Returns:
        A model of the same class, dtype and device, in evaluation mode. It cannot be trained, as the norms are gone
        and no parameter requires a gradient. Its state dict is not that of the original: load weights before.

    Raises:
        ValueError: If the model is in training mode, or the size of its images is not known.
    """
    if model.training or any(m.training for m in model.modules() if isinstance(m, BatchNormBase)):
        raise ValueError('optimize() is for inference: call model.eval() first.')
    pairs = _find_pairs(model, input_size)
    model = copy.deepcopy(model).eval()
    without_norm = {}
    for norm, conv in pairs.items():
        norm, conv = model.get_submodule(norm), model.get_submodule(conv)
        dtype = conv.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)  # half types are rounded once, at the end
        fused = fuse_conv_bn_eval(copy.deepcopy(conv).to(wide), copy.deepcopy(norm).to(wide)).to(dtype)
        conv.weight, conv.bias = fused.weight, fused.bias
        without_norm[norm] = _remainder(norm)
    for parent in list(model.modules()):  # a norm may be registered in several places
        children = children_by_name(parent)
        for name, child in children.items():
            children[name] = without_norm.get(child, child)
    if portable:
        for module in model.modules():
            if hasattr(module, 'portable'):
                module.portable = True
    return model.requires_grad_(False)


def _remainder(norm: nn.Module) -> nn.Module:
    """What a norm does after the normalization."""
    parts = {name: getattr(norm, name, None) for name in ('drop', 'act')} if isinstance(norm, _NORM_ACTS) else {}
    parts = {name: part for name, part in parts.items() if not isinstance(part, nn.Identity | None)}
    rest = nn.Sequential(OrderedDict(parts)) if parts else nn.Identity()
    rest.training = False
    copy_forward_hooks(norm, rest)
    return rest


class _ReadCounter(TorchDispatchMode):
    """Counts how often each watched tensor is read by an operation."""

    def __init__(self):
        super().__init__()
        self.reads = {}
        self.alive = []  # the watched tensors, so that no other one takes over an id

    def watch(self, tensor):
        self.alive.append(tensor)
        self.reads[id(tensor)] = 0

    def count(self, values):
        for value in tree_leaves(values):
            if id(value) in self.reads:
                self.reads[id(value)] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count((args, kwargs))
        return func(*args, **(kwargs or {}))


def _find_pairs(model: nn.Module, input_size: tuple[int, ...] | None) -> dict[str, str]:
    """Names of the norms that can be folded -> names of their convolutions.

    Found by running a copy on the meta device, which computes nothing: a norm belongs to the convolution whose output
    is, as an object, the norm's input. The fold is safe because the norm runs once, the convolution's weight is read
    once (so it runs once too), and its output is read once: no other operation, hook or caller would miss the norm.
    """
    tensors = [*model.parameters(), *model.buffers()]
    probe = copy.deepcopy(model, {id(t): torch.empty_like(t, device='meta') for t in tensors}).eval()
    names = {m: name for name, m in probe.named_modules()}
    plain = [m for m in names if not has_forward_pre_hooks(m)]  # a hook may compute the weights, or keep the input
    convs = [m for m in plain if type(m) in _CONVS and not has_forward_hooks(m)]
    norms = [m for m in plain if type(m) in _NORMS and m.running_mean is not None]
    if not convs or not norms:
        return {}
    first = next(m for m in names if isinstance(m, _CONVS))
    if input_size is None:
        cfg = getattr(model, 'pretrained_cfg', None) or {}
        if 'input_size' not in cfg:
            raise ValueError('The model has no pretrained_cfg: pass input_size=(channels, height, width).')
        input_size = (first.in_channels, *cfg['input_size'][1:])

    counter = _ReadCounter()
    made_by: dict[int, nn.Module] = {}
    inputs: dict[nn.Module, list[torch.Tensor]] = {}

    def after_conv(conv, args, out):
        counter.watch(out)
        made_by[id(out)] = conv

    def before_norm(norm, args, kwargs):
        x = next(iter((*args, *kwargs.values())))
        inputs.setdefault(norm, []).append(x)
        return (x.view_as(x),), {}  # reads it once, however often the norm does

    for conv in convs:
        counter.watch(conv.weight)
        conv.register_forward_hook(after_conv)
    for norm in norms:
        norm.register_forward_pre_hook(before_norm, with_kwargs=True)
    with counter:
        counter.count(probe(torch.empty(1, *input_size, dtype=first.weight.dtype, device='meta')))

    pairs = {}
    for norm, seen in inputs.items():
        x = seen[0]
        conv = made_by.get(id(x))
        if conv is not None and len(seen) == 1 and counter.reads[id(x)] == 1 and counter.reads[id(conv.weight)] == 1:
            pairs[names[norm]] = names[conv]
    return pairs
