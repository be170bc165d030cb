"""torch.hub entrypoints: ``torch.hub.load('OWNER/timm-attn', 'csa_resnet50', pretrained=True)``.

One entrypoint a model, each with timm's arguments:

* ``pretrained``: load weights.
* ``pretrained_cfg``: tag of the weights, such as ``'cifar10'``; the default ones if left out.
* ``num_classes``, ``in_chans``, ``features_only``, ``out_indices``, ``output_stride``, ``drop_rate`` and all others
  that ``timm.create_model`` passes on.
"""

dependencies = ['torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors']

from timm_attn.models.cifar_resnet import (  # noqa: E402
    ca_resnet20_cifar,
    cbam_resnet20_cifar,
    csa_resnet20_cifar,
    resnet20_cifar,
    scsa_resnet20_cifar,
    se_resnet20_cifar,
)
from timm_attn.models.csa_resnet import (  # noqa: E402
    csa_resnet18,
    csa_resnet34,
    csa_resnet50,
    csa_resnet101,
)
from timm_attn.models.mbv2_attn import (  # noqa: E402
    mbv2_ca,
    mbv2_ca_050,
    mbv2_ca_075,
    mbv2_cbam,
    mbv2_scsa,
    mbv2_se,
)
from timm_attn.models.mobilenext import (  # noqa: E402
    mobilenext,
    mobilenext_ca,
    mobilenext_se,
)
from timm_attn.models.scsa_resnet import (  # noqa: E402
    scsa_resnet18,
    scsa_resnet34,
    scsa_resnet50,
    scsa_resnet101,
)

__all__ = [
    'ca_resnet20_cifar',
    'cbam_resnet20_cifar',
    'csa_resnet18',
    'csa_resnet20_cifar',
    'csa_resnet34',
    'csa_resnet50',
    'csa_resnet101',
    'dependencies',
    'mbv2_ca',
    'mbv2_ca_050',
    'mbv2_ca_075',
    'mbv2_cbam',
    'mbv2_scsa',
    'mbv2_se',
    'mobilenext',
    'mobilenext_ca',
    'mobilenext_se',
    'resnet20_cifar',
    'scsa_resnet18',
    'scsa_resnet20_cifar',
    'scsa_resnet34',
    'scsa_resnet50',
    'scsa_resnet101',
    'se_resnet20_cifar',
]
