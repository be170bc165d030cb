"""The model that a training run starts with: built, and with the weights of a backbone or of a trained model."""

from torch import nn

from ..train.options import RunError
from ..train.start import check_finite
from .checkpoint import load
from .data import Annotations
from .tasks import Task


def create_model(task: Task, train: Annotations, tells: bool) -> nn.Module:
    """The model with the weights that a new run starts from."""
    args = task.args
    pretrained = args.pretrained and not args.initial_checkpoint
    trained = load(args.initial_checkpoint) if args.initial_checkpoint else None
    if trained:  # its norms keep the statistics that they have, if they did so before
        args.model_kwargs = {'batch_norm': trained.recipe['args']['batch_norm'], **args.model_kwargs}
    model = task.create(train, pretrained)
    if pretrained:
        check_finite(model, args.pretrained_path or f'the pretrained weights of {args.backbone}')
    if trained:
        _load_what_fits(model, trained, args.initial_checkpoint, tells)
    return model


def _load_what_fits(model: nn.Module, trained: nn.Module, run: str, tells: bool) -> None:
    """Load the tensors of a trained model that have a name and a shape of this one; what was frozen remains so."""
    own = model.state_dict()
    tensors = trained.state_dict().items()
    fitting = {key: value for key, value in tensors if key in own and own[key].shape == value.shape}
    if 2 * len(fitting) < len(own):
        raise RunError(
            f'--initial-checkpoint {run}: only {len(fitting)} of the {len(own)} tensors of this model are in it, with '
            f'the same shape. It holds {trained.recipe["builder"]} on {trained.recipe["args"]["backbone"]}: name these.'
        )
    model.load_state_dict(fitting, strict=False)
    frozen = {key for key, parameter in trained.named_parameters() if not parameter.requires_grad}
    for key, parameter in model.named_parameters():
        if key in frozen and key in fitting:
            parameter.requires_grad_(False)
    others = [key for key in own if key not in fitting]
    if tells and others:
        more = ', ...' * (len(others) > 3)
        print(
            f'{run}: {len(fitting)} of {len(own)} tensors are loaded; anew: {", ".join(others[:3])}{more}', flush=True
        )
