"""torch.hub entrypoints: ``torch.hub.load('OWNER/timm-attn', 'csa_resnet50', pretrained=True)``.

There is one for each model, with timm's arguments, and ``attached`` for any CNN of timm with any attention:

* ``pretrained``: load weights.
* ``pretrained_cfg``: tag of the weights, such as ``'cifar10'``; by default those of the model's first tag.
* ``num_classes``, ``in_chans``, ``features_only``, ``out_indices``, ``output_stride``, ``drop_rate`` and all others
  that ``timm.create_model`` passes on.
"""

dependencies = ['torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors', 'PIL', 'tqdm', 'yaml']

from timm.models import model_entrypoint as _model_entrypoint  # noqa: E402

from timm_attn.models import zoo_models as _zoo_models  # noqa: E402

_names = ['attached', *_zoo_models()]
globals().update({_name: _model_entrypoint(_name) for _name in _names})
__all__ = ['dependencies', *_names]
