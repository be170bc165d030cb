"""Every defect of a data set, before training stumbles over one."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tqdm import tqdm

from ...printable import printable
from .images import find_orientation, load_image, load_mask, read_mask_size
from .records import Annotations, Defect, ImageRecord, InvalidRecord, PackedRecords, count_by_kind

_BLOCK = 1024  # images whose results are waited for together


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What :func:`check` found. As text it lists every defect, one a line.

    Attributes:
        annotations: What was checked.
        defects: All defects, those that the reader found first.
        valid: The annotations without everything that has a defect.
    """

    annotations: Annotations
    defects: tuple[Defect, ...]
    valid: Annotations

    @property
    def counts(self) -> Counter[str]:
        """Number of defects of each kind."""
        return Counter(defect.kind for defect in self.defects)

    def __str__(self) -> str:
        valid = self.valid
        objects = '' if valid.mask_coding else f' with {sum(len(record.objects) for record in valid.records)} objects'
        summary = (
            f'{printable(valid.source)}: {len(valid.records)} valid images{objects}, {len(valid.classes)} classes; '
            f'defects: {count_by_kind(self.defects)}'
        )
        return '\n'.join([summary, *map(str, self.defects)])

    __repr__ = __str__


def check(annotations: Annotations, quick: bool = False) -> Report:
    """Open every image and mask of a data set, and list what is wrong with them and with the annotations.

    Progress is shown on a terminal.

    Args:
        annotations: What a reader returned.
        quick: Whether to read only the headers of images and masks. That finds files that are missing or have another
            size than annotated, but neither damaged ones nor unknown values in masks.
    """

    def find_defect(record: ImageRecord) -> Defect | None:
        try:
            _open(record, annotations, quick)
        except InvalidRecord as e:
            return e.at(record.image)
        return None

    records = annotations.records
    found: list[Defect | None] = []
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(records), desc='check', unit='image', leave=False, disable=None) as bar,
    ):
        for start in range(0, len(records), _BLOCK):
            block = records[start : start + _BLOCK]
            for defect in pool.map(find_defect, block):
                found.append(defect)
                bar.update()
    valid = annotations.records
    if any(found):
        valid = PackedRecords(record for record, defect in zip(records, found, strict=True) if defect is None)
    defects = annotations.defects + tuple(defect for defect in found if defect)
    return Report(annotations, defects, replace(annotations, records=valid, defects=()))


def _open(record: ImageRecord, annotations: Annotations, quick: bool) -> None:
    """Raise an error if the image or the mask of a record is not as it should be."""
    size = record.size
    if annotations.mask_coding is not None:
        size = read_mask_size(record.mask)
        if not quick:
            load_mask(record.mask, annotations.mask_coding)
    if quick:
        find_orientation(record.image, size, record.mask)
    else:
        load_image(record.image, size, record.mask)
