"""Networks that cost a suite more time than they show: which of their tests are slow, or exhaustive."""

from timm_attn.models import zoo_models

DEEP = tuple(name for name in zoo_models() if name.endswith('_resnet101'))
# ResNets with the attentions that CSA-Net is compared with. Their layers have tests of their own, and of their blocks
# ba_resnet18 and dia_resnet29_cifar are tested quickly, eca_resnet50 slowly.
PEERS = tuple(
    f'{attention}_resnet50'
    for attention in ('aa', 'ba', 'bam', 'cbam', 'dia', 'eca', 'fca', 'gala', 'gct', 'gsop', 'sasa')
)
SLOW = frozenset(('csa_resnet101', 'scsa_resnet101', 'eca_resnet50'))
EXHAUSTIVE = frozenset((*DEEP, *PEERS)) - SLOW
# Tests marked ``heavy`` take many seconds for each network. A few networks are tested quickly, one of each kind of
# block slowly, and all others exhaustively.
FEW = frozenset(('csa_resnet20_cifar', 'mbv2_ca'))
SOME = FEW | {
    'scsa_resnet20_cifar', 'ca_resnet20_cifar', 'csa_resnet18', 'mbv2_scsa', 'mobilenext_ca', 'dia_resnet29_cifar',
    'ba_resnet18',
}  # fmt: skip
