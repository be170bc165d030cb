"""What a trained network answered for the test images of a comparison, and what is computed from that."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ..predict import classify
from ..whole_file import write_json
from .options import RunError

Samples = Sequence[tuple[str, int]]

BINS = 15
"""Bins of confidence, as in Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599)."""


@dataclass(frozen=True)
class Answers:
    """Answers of one network after one run.

    Attributes:
        labels: Names of the classes by index.
        images: Names of the images in the folder of the test images.
        true: Index of the class of each image.
        predicted: Index of the predicted class.
        confidence: Its probability.
    """

    labels: list[str]
    images: list[str]
    true: list[int]
    predicted: list[int]
    confidence: list[float]

    @classmethod
    def of(cls, model: nn.Module, samples: Samples, labels: list[str], root: Path, batch_size: int) -> 'Answers':
        """Let a network answer.

        Args:
            model: Classifier in evaluation mode.
            samples: Path and index of the class of each image.
            labels: Names of the classes by index.
            root: Folder of the images.
            batch_size: Images in a batch.
        """
        paths = [path for path, _ in samples]
        first = [answer['classes'][0] for answer in classify(model, paths, labels.__getitem__, 1, batch_size)]
        return cls(
            labels,
            [Path(path).relative_to(root).as_posix() for path in paths],
            [index for _, index in samples],
            [one['index'] for one in first],
            [one['probability'] for one in first],
        )

    @classmethod
    def read(cls, path: Path) -> 'Answers':
        """Answers in a file.

        Raises:
            RunError: If it is damaged.
        """
        try:
            return cls(**json.loads(path.read_text(encoding='utf-8')))
        except (OSError, ValueError, TypeError) as e:
            raise RunError(f'Cannot read {path}: {e}') from e

    def write(self, path: Path) -> None:
        """Write them, completely or not at all."""
        write_json(path, asdict(self))

    @property
    def right(self) -> list[bool]:
        """Whether each answer is right."""
        return [a == b for a, b in zip(self.true, self.predicted, strict=True)]

    @property
    def top1(self) -> float:
        """Share of right answers in percent."""
        return 100 * sum(self.right) / len(self.true)

    @property
    def confusion(self) -> torch.Tensor:
        """Number of images by true (rows) and predicted class (columns)."""
        n = len(self.labels)
        pairs = torch.tensor(self.true) * n + torch.tensor(self.predicted)
        return torch.bincount(pairs, minlength=n * n).view(n, n)

    @property
    def reliability(self) -> list[tuple[float, float, int]]:
        """Mean confidence, share of right answers, and number of answers, in each bin of confidence that has some."""
        right, confidence = torch.tensor(self.right, dtype=torch.float64), torch.tensor(self.confidence).double()
        index = (confidence * BINS).long().clamp_max(BINS - 1)
        counts = torch.bincount(index, minlength=BINS)
        sums = [torch.bincount(index, values, minlength=BINS).tolist() for values in (confidence, right)]
        return [(c / n, r / n, n) for c, r, n in zip(*sums, counts.tolist(), strict=True) if n]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in percent (eq. 5 of arXiv 1706.04599): mean of |accuracy - confidence|."""
        return 100 * sum(n * abs(c - r) for c, r, n in self.reliability) / len(self.true)

    def per_class(self) -> dict[str, float]:
        """Share of right answers by class, in percent, of the classes that have images."""
        counts = self.confusion
        return {self.labels[i]: 100 * counts[i, i].item() / row for i, row in enumerate(counts.sum(1).tolist()) if row}


def mean_per_class(runs: Sequence[Answers]) -> dict[str, float]:
    """Share of right answers by class, in percent, as the mean of several runs."""
    each = [one.per_class() for one in runs]
    return {name: statistics.fmean(one[name] for one in each) for name in each[0]}
