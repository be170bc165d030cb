"""What the values in a mask of class ids mean."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_VALUES = 2**16  # of masks with 16 bits
_UNKNOWN = np.iinfo(np.int64).min


@dataclass(frozen=True)
class MaskCoding:
    """Values of masks, and the class ids that they stand for.

    Args:
        num_classes: Number of classes; their ids are 0 to ``num_classes - 1``.
        ignore_index: Id of pixels that count neither in training nor in evaluation.
        values: Class id, or ``ignore_index``, of each value that masks may have; None if they are the same.

    Raises:
        ValueError: If ``ignore_index`` is a class, or values or class ids are out of range.
    """

    num_classes: int
    ignore_index: int = 255
    values: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        if 0 <= self.ignore_index < self.num_classes:
            raise ValueError(
                f'ignore_index {self.ignore_index} is one of the classes 0 to {self.num_classes - 1}; to ignore a '
                'class, leave it out of classes and map its value to ignore_index.'
            )
        for value, index in (self.values or {}).items():
            if not 0 <= value < _VALUES or not (0 <= index < self.num_classes or index == self.ignore_index):
                raise ValueError(
                    f'{value}: {index} is not allowed. Values of masks are 0 to {_VALUES - 1}, class ids are 0 to '
                    f'{self.num_classes - 1}, or {self.ignore_index} for pixels to ignore.'
                )

    def decode(self, mask: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Replace values by class ids.

        Args:
            mask: Values (H, W), whole numbers.

        Returns:
            Class ids (H, W), int64, and the values that mean nothing; the ids are of no use if there are any.
        """
        table = np.full(_VALUES, _UNKNOWN)
        if self.values is None:
            table[: self.num_classes] = np.arange(self.num_classes)
            if 0 <= self.ignore_index < _VALUES:
                table[self.ignore_index] = self.ignore_index
        else:
            table[list(self.values)] = list(self.values.values())
        if mask.dtype not in (np.uint8, np.uint16):  # 32-bit
            outside = mask[(mask < 0) | (mask >= _VALUES)]
            if outside.size:
                return mask, np.unique(outside).tolist()
        ids = table[mask]
        return ids, np.unique(mask[ids == _UNKNOWN]).tolist()
