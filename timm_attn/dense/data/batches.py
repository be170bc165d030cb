"""Which images a process gets in training and in evaluation."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from .datasets import DetectionDataset


class EpochBatches(Sampler[list[int]]):
    """Batches of one process in training, as many as every other process has.

    In an epoch no image comes twice. What is left after the last whole step of the optimizer is left out, other images
    in each epoch. The order depends on seed and epoch alone, so that a resumed run repeats it.

    Pass it to each process's own loader as ``batch_sampler``. The loader must not be split among processes again.

    Args:
        length: Number of images.
        batch_size: Images in a batch of one process.
        seed: Seed of the order, from 0 on; the same in every process.
        rank: Number of this process.
        world_size: Number of processes.
        accumulate: Batches in a step of the optimizer; the number of batches is a multiple of it.
        groups: Group of each image. The batches that all processes have at a time are of one group; only what is left
            over from the groups forms mixed ones.

    Attributes:
        batch_size: As given.

    Raises:
        ValueError: If there are too few images for one step, or the arguments do not fit.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        groups: Sequence[int] | None = None,
    ) -> None:
        if min(batch_size, world_size, accumulate) < 1:
            raise ValueError(
                f'batch_size {batch_size}, world_size {world_size} and accumulate {accumulate} must be 1 or more.'
            )
        _check_rank(rank, world_size)
        if groups is not None and len(groups) != length:
            raise ValueError(f'groups has {len(groups)} entries; it must have one for each of the {length} images.')
        self.batch_size = batch_size
        self._at_a_time = batch_size * world_size
        if length < self._at_a_time * accumulate:
            raise ValueError(
                f'There are {length} images to train on, fewer than a step of the optimizer takes: '
                f'{self._at_a_time * accumulate} (batch size {batch_size} x {world_size} processes x {accumulate} '
                'accumulated batches). Choose a smaller batch, or add images.'
            )
        self._length = length // (self._at_a_time * accumulate) * accumulate
        self._own = slice(rank * batch_size, (rank + 1) * batch_size)
        self._seed = seed
        self._epoch = 0
        by_group = defaultdict(list)
        for index, group in enumerate([0] * length if groups is None else groups):
            by_group[group].append(index)
        self._groups = [np.array(indices) for _, indices in sorted(by_group.items())]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration is of."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self._seed, self._epoch])
        batches: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for group in map(random.permutation, self._groups):
            whole = len(group) - len(group) % self._at_a_time
            batches += self._cut(group[:whole])
            rest.append(group[whole:])
        left_over = random.permutation(np.concatenate(rest))
        batches += self._cut(left_over[: len(left_over) - len(left_over) % self._at_a_time])
        for i in random.permutation(len(batches))[: self._length]:
            yield batches[i][self._own].tolist()

    def _cut(self, indices: np.ndarray) -> list[np.ndarray]:
        """Batches of all processes together."""
        return list(indices.reshape(-1, self._at_a_time))


def aspect_ratio_groups(dataset: DetectionDataset) -> list[int]:
    """Group of each image for :class:`EpochBatches`: 0 if it is higher than wide, otherwise 1.

    Images of a batch are padded to one size, which takes the least in batches of one group.

    Args:
        dataset: The images, which are not opened: the annotated sizes count.
    """
    return [int(height <= width) for height, width in (dataset.record(i).size for i in range(len(dataset)))]


def share(length: int, rank: int, world_size: int) -> range:
    """Indices of the images that one process evaluates: every image is in the share of exactly one.

    Args:
        length: Number of images.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If there is no such process.
    """
    _check_rank(rank, world_size)
    return range(rank, length, world_size)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f'rank must be from 0 to {world_size - 1}, not {rank}.')
