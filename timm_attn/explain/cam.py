"""Class activation maps, computed by the package grad-cam."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr

import torch
from torch import nn

from .target import as_input, as_it_was, check_map, target_layer

METHODS = {
    'gradcam': 'GradCAM',
    'gradcam++': 'GradCAMPlusPlus',
    'hirescam': 'HiResCAM',
    'gradcam-elementwise': 'GradCAMElementWise',
    'xgradcam': 'XGradCAM',
    'layercam': 'LayerCAM',
    'eigengradcam': 'EigenGradCAM',
    'eigencam': 'EigenCAM',
    'scorecam': 'ScoreCAM',
}
"""Name of a method -> class of ``pytorch_grad_cam``. Left out are those that replace layers of the model, look at other
layers than the one that is named, or draw random numbers."""


def class_activation_maps(
    model: nn.Module,
    images: torch.Tensor,
    targets: Sequence[int] | None = None,
    method: str = 'gradcam',
    layer: str | None = None,
) -> tuple[torch.Tensor, list[int]]:
    """Where in each image a CNN finds evidence for a class, by the last map before its pooling.

    The model is left as it was: its mode, its hooks, which of its parameters take gradients, and these gradients. The
    map of an image does not depend on the others of the batch.

    Source: Grad-CAM (arXiv 1610.02391) and its relatives, as implemented by https://github.com/jacobgil/pytorch-grad-cam.

    Args:
        model: A CNN of timm with a classifier.
        images: Images as the model takes them (B, 3, H, W).
        targets: Index of the class that each image is asked for; by default the one that the model predicts.
        method: One of ``METHODS``. ``eigencam`` does not depend on the class.
        layer: Dotted name of the layer whose map is used; by default the last level of ``model.feature_info``.

    Returns:
        The maps (B, H, W), resized to the images and scaled so that each goes from 0 to 1 (all zeros where nothing
        speaks for the class), on the CPU; and the classes they are of.

    Raises:
        ValueError: If there is no such method, layer or class, or the layer's output is no map.
    """
    if method not in METHODS:
        raise ValueError(f'Unknown method {method!r}; it must be one of {", ".join(METHODS)}.')
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    name, module = target_layer(model, layer)
    _check_targets(model, len(images), targets)
    with torch.inference_mode(False), torch.enable_grad(), as_it_was(model):
        x = as_input(model, images)
        _check_layer(model, name, module, x[:1])
        cam = getattr(pytorch_grad_cam, METHODS[method])(model, [module])
        keep = _Keep(1 if not cam.uses_gradients else None)
        cam.activations_and_grads.reshape_transform = keep
        try:
            asked = None if targets is None else [ClassifierOutputTarget(int(t)) for t in targets]
            with redirect_stderr(io.StringIO()):  # ScoreCAM draws a progress bar for every image
                maps = torch.from_numpy(cam(x, asked))
        finally:  # not as a context manager, which swallows errors
            cam.activations_and_grads.release()
        predicted = cam.outputs.argmax(-1).tolist()
    if not maps.isfinite().all():
        raise ValueError(f'The maps of {method} contain values that are not numbers: try another method or layer.')
    return maps, predicted if targets is None else [int(t) for t in targets]


class _Keep:
    """Copies what a layer returned, which later layers may overwrite, as float32, which numpy knows.

    Of methods that run the model once for every channel, it keeps what they use: the first run.
    """

    def __init__(self, runs: int | None):
        self.left = runs

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                return x.new_empty(0)
        return x.detach().float().clone()


def _check_targets(model: nn.Module, count: int, targets: Sequence[int] | None) -> None:
    if targets is None:
        return
    if len(targets) != count:
        raise ValueError(f'There are {len(targets)} targets for {count} images; each image needs one class.')
    bad = [t for t in targets if not 0 <= t < model.num_classes]
    if bad:
        raise ValueError(f'There is no class {bad[0]}; the model has the classes 0 to {model.num_classes - 1}.')


@torch.no_grad()
def _check_layer(model: nn.Module, name: str, module: nn.Module, image: torch.Tensor) -> None:
    outputs: list[object] = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        logits = model(image)
    finally:
        handle.remove()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, model.num_classes):
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f'The network does not classify: for one image it returns {what}.')
    if len(outputs) != 1:
        raise ValueError(f'The layer {name} runs {len(outputs)} times for an image, but it must run once.')
    check_map(outputs[0], name, model)
