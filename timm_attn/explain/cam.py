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
    """Where in each image a CNN finds evidence for a class, by the map at the end of its last stage.

    The model is left as it was: its mode, its hooks, which of its parameters take gradients, and these gradients. The
    map of an image does not depend on the others of the batch.

    Source: Grad-CAM (arXiv 1610.02391) and its relatives, as implemented by https://github.com/jacobgil/pytorch-grad-cam.

    Args:
        model: A CNN of timm with a classifier.
        images: Images as the model takes them (B, 3, H, W).
        targets: Index of the class that each image is asked for; by default the one that the model predicts.
        method: One of ``METHODS``. ``eigencam`` does not depend on the class. It and ``eigengradcam`` show the first
            singular vector of a map, whose sign is arbitrary: they may show the background in place of the object.
        layer: Dotted name of the layer whose map is used; by default the last level of ``model.feature_info``.

    Returns:
        The maps (B, H, W), resized to the images and scaled so that each goes from 0 to 1 (all zeros where nothing
        speaks for the class), on the CPU; and the classes they are of.

    Raises:
        ValueError: If there is no such method, layer or class, or the layer's output is no map.
    """
    maps, logits = maps_and_logits(model, images, targets, method, layer)
    return maps, logits.argmax(-1).tolist() if targets is None else [int(t) for t in targets]


def maps_and_logits(
    model: nn.Module, images: torch.Tensor, targets: Sequence[int] | None, method: str, layer: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`class_activation_maps`, with what the model answers (B, num_classes), on its device."""
    if method not in METHODS:
        raise ValueError(f'Unknown method {method!r}; it must be one of {", ".join(METHODS)}.')
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    name, module = target_layer(model, layer)
    _check_targets(model, len(images), targets)
    with torch.inference_mode(False), torch.enable_grad(), as_it_was(model):
        x = as_input(model, images)
        logits = _check_layer(model, name, module, x)
        classes = logits.argmax(-1).tolist() if targets is None else [int(t) for t in targets]
        cam = getattr(pytorch_grad_cam, METHODS[method])(model, [module])
        keep = _Keep(cam.uses_gradients)
        cam.activations_and_grads.reshape_transform = keep
        # ScoreCAM multiplies images with maps, which are float32
        cast = model.register_forward_pre_hook(lambda module, args: (args[0].to(x.dtype), *args[1:]))
        # it also makes an image for each channel at once, and goes through them one after the other
        size = 1 if method == 'scorecam' else len(x)
        parts = []
        try:
            for i in range(0, len(x), size):
                keep.runs = 0
                asked = [ClassifierOutputTarget(t) for t in classes[i : i + size]]
                with redirect_stderr(io.StringIO()):  # ScoreCAM draws a progress bar for every image
                    parts.append(torch.from_numpy(cam(x[i : i + size], asked)))
        finally:  # not as a context manager, which swallows errors
            cast.remove()
            cam.activations_and_grads.release()
    maps = torch.cat(parts)
    if not maps.isfinite().all():
        raise ValueError(f'The maps of {method} contain values that are not numbers: try another method or layer.')
    return maps, logits


class _Keep:
    """Copies what a layer returned, which later layers may overwrite, as float32, which numpy knows.

    Args:
        all_runs: Whether all runs of the model are kept. Methods without gradients use the first run alone, and some
            run the model once for every channel.

    Attributes:
        runs: Number of runs so far.
    """

    def __init__(self, all_runs: bool):
        self.all_runs, self.runs = all_runs, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x.detach().float().clone() if self.all_runs or self.runs == 1 else x.new_empty(0)


def _check_targets(model: nn.Module, count: int, targets: Sequence[int] | None) -> None:
    if targets is None:
        return
    if len(targets) != count:
        raise ValueError(f'There are {len(targets)} targets for {count} images; each image needs one class.')
    bad = [t for t in targets if not 0 <= t < model.num_classes]
    if bad:
        raise ValueError(f'There is no class {bad[0]}; the model has the classes 0 to {model.num_classes - 1}.')


@torch.no_grad()
def _check_layer(model: nn.Module, name: str, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Check that the layer makes one map of each image, and return what the model answers."""
    outputs: list[object] = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        logits = model(images)
    finally:
        handle.remove()
    if not isinstance(logits, torch.Tensor) or logits.shape != (len(images), model.num_classes):
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f'The network does not classify: for {len(images)} images it returns {what}.')
    if len(outputs) != 1:
        raise ValueError(f'The layer {name} runs {len(outputs)} times for an image, but it must run once.')
    check_map(outputs[0], name, model)
    return logits
