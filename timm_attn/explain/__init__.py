"""What a classifier looks at: class activation maps, descriptor curves, receptive fields and the pointing game.

Maps need the package grad-cam, curves need scipy, and pictures of curves and fields matplotlib; all come with
``pip install "timm-attn[explain]"``. They are imported where they are used.
"""

from .cam import METHODS, class_activation_maps
from .curves import StageCurves, curve_rows, descriptor_curves, plot_curves
from .images import find_samples, load_batches
from .pointing import (
    Mosaic,
    PointingGame,
    centred_gaussian,
    choose_mosaics,
    grid_pointing_game,
    randomised,
    similarity,
)
from .receptive_field import centred_squares, plot_fields, receptive_field
from .sheet import Explanation, draw_sheet, explain

__all__ = [
    'METHODS',
    'Explanation',
    'Mosaic',
    'PointingGame',
    'StageCurves',
    'centred_gaussian',
    'centred_squares',
    'choose_mosaics',
    'class_activation_maps',
    'curve_rows',
    'descriptor_curves',
    'draw_sheet',
    'explain',
    'find_samples',
    'grid_pointing_game',
    'load_batches',
    'plot_curves',
    'plot_fields',
    'randomised',
    'receptive_field',
    'similarity',
]
