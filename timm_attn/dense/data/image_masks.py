"""Reader of folders of images and masks."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import files_by_stem, read_split
from .mask_coding import MaskCoding
from .records import Annotations, Defect, ImageRecord, PackedRecords, check_classes

MASK_EXTENSIONS = ('.png', '.tif', '.tiff', '.bmp')  # a JPEG changes values


def read_image_masks(
    images: str | Path,
    masks: str | Path,
    classes: Sequence[str],
    ignore_index: int = 255,
    values: Mapping[int, int] | None = None,
    split: str | Path | None = None,
    image_suffix: str = '',
    mask_suffix: str = '',
    recursive: bool = False,
) -> Annotations:
    """Read a folder of images and one of masks, in which the mask of ``a.jpg`` is ``a.png``.

    The id of an image is its place in the list of images, sorted or as in the split.

    Args:
        images: Folder of images.
        masks: Folder of masks, with one value a pixel: PNG with a palette, or with 8 or 16 bit grey.
        classes: Names of the classes 0, 1, and so on, the background included if it is one. See
            :func:`~timm_attn.dense.data.read_lines` for a file with names.
        ignore_index: Value of pixels that count neither in training nor in evaluation.
        values: Class id, or ``ignore_index``, of each value in the masks, if they are not the same.
        split: Text file with the names of the images to use, one a line and without extensions; by default all.
        image_suffix: End of the names of images, before the extension, that the names of their masks lack.
        mask_suffix: End of the names of masks that the names of their images lack: ``_mask`` for ``a_mask.png``.
        recursive: Whether to read the folders in both, too. A mask must be in the folder of the same name.

    Raises:
        ValueError: If a folder is missing or empty, the split cannot be read, or the classes and values do not fit.
    """
    classes = check_classes(classes)
    coding = MaskCoding(len(classes), ignore_index, values)
    image_files = files_by_stem(Path(images), suffix=image_suffix, recursive=recursive)
    mask_files = files_by_stem(Path(masks), MASK_EXTENSIONS, mask_suffix, recursive)
    defects: list[Defect] = []
    stems = sorted({*image_files, *mask_files}) if split is None else read_split(Path(split), defects)
    if not stems:
        raise ValueError(f'{str(split)!r} names no images.')
    records = []
    for image_id, stem in enumerate(stems):
        of_image, of_mask = image_files.get(stem, []), mask_files.get(stem, [])
        if not of_image:
            defects.append(Defect('missing image', str(images), stem, 'there is no image of this name'))
        elif not of_mask:
            defects.append(Defect('missing file', of_image[0], '', f'there is no mask of this name in {str(masks)!r}'))
        elif len(of_image) > 1 or len(of_mask) > 1:
            names = ', '.join(map(os.path.basename, of_image if len(of_image) > 1 else of_mask))
            defects.append(Defect('duplicate id', of_image[0], '', f'several files have the name: {names}'))
        else:
            records.append(ImageRecord(image_id, of_image[0], mask=of_mask[0]))
    category_ids = tuple(range(len(classes)))
    return Annotations(str(images), classes, category_ids, PackedRecords(records), tuple(defects), coding)
