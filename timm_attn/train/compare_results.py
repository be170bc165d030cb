"""What a comparison has found, as numbers and as text."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from .answers import Answers, mean_per_class
from .compare_costs import Cost
from .significance import Difference, difference


@dataclass
class Network:
    """A network of a comparison and its results.

    Attributes:
        label: Its name.
        answers: What it answered after the last epoch, by seed.
        logs: Rows of the logs of the runs that have answers, by seed.
        failures: Why runs failed, by seed.
        cost: What it costs, if it was measured.
    """

    label: str
    answers: dict[int, Answers] = field(default_factory=dict)
    logs: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    cost: Cost | None = None

    @property
    def top1(self) -> list[float]:
        """Top-1 in percent of each seed."""
        return [answers.top1 for answers in self.answers.values()]

    @property
    def mean(self) -> float:
        """Mean top-1 in percent."""
        return statistics.fmean(self.top1)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds; None with one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None

    @property
    def calibration_error(self) -> float:
        """Mean expected calibration error in percent."""
        return statistics.fmean(answers.calibration_error for answers in self.answers.values())

    @property
    def per_class(self) -> dict[str, float]:
        """Mean share of right answers in percent, by class."""
        return mean_per_class(list(self.answers.values()))

    @property
    def seconds(self) -> float:
        """Time of training and validation of its runs."""
        return sum(row['train_time'] + row['eval_time'] for rows in self.logs.values() for row in rows)


@dataclass
class Results:
    """What a comparison has found.

    Attributes:
        networks: The networks; the first is the reference.
        data: Name of the data set.
        tested_on: Which images, in words.
        trained_on: Number of images to train on.
        recipe: Options of each run.
        pretrained: Whether the networks started from their pretrained weights.
        plan: What a budget has chosen, in words.
        command: Words of the command.
        machine: What the times depend on.
    """

    networks: list[Network]
    data: str
    tested_on: str
    trained_on: int
    recipe: dict[str, Any]
    pretrained: bool
    plan: str
    command: list[str]
    machine: dict[str, Any]

    @property
    def finished(self) -> list[Network]:
        """Networks with a result."""
        return [network for network in self.networks if network.answers]

    @property
    def test_images(self) -> int:
        """Number of test images."""
        return len(next(iter(self.finished[0].answers.values())).images)

    def difference(self, network: Network) -> Difference | None:
        """How a network's top-1 (%) differs from the reference; None for the reference, and where it has none."""
        reference = self.networks[0]
        if network is reference or not reference.answers or not network.answers:
            return None
        return difference(network.top1, reference.top1, step=100 / self.test_images)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the answers for each image."""
        networks = []
        for network in self.networks:
            one: dict[str, Any] = dict(network=network.label)
            if network.answers:
                one |= dict(
                    top1={str(seed): round(answers.top1, 4) for seed, answers in network.answers.items()},
                    mean=round(network.mean, 4),
                    deviation=network.deviation and round(network.deviation, 4),
                    calibration_error=round(network.calibration_error, 4),
                    per_class={name: round(share, 4) for name, share in network.per_class.items()},
                    training_seconds=round(network.seconds, 1),
                )
            if found := self.difference(network):
                one |= dict(difference=found.mean, low=found.low, high=found.high, verdict=found.words)
            if network.cost:
                one |= dict(cost=asdict(network.cost))
            if network.failures:
                one |= dict(failures={str(seed): why for seed, why in network.failures.items()})
            networks.append(one)
        return dict(
            networks=networks, data=self.data, tested_on=self.tested_on, test_images=self.test_images,
            trained_on=self.trained_on, pretrained=self.pretrained, recipe=self.recipe, plan=self.plan,
            command=self.command, machine=self.machine,
        )  # fmt: skip

    def as_text(self) -> str:
        """The main table, for a terminal."""
        width = max(len(network.label) for network in self.networks)
        lines = [f'{"":{width}}  top-1 (%)      against {self.networks[0].label}']
        for network in self.networks:
            if not network.answers:
                lines.append(f'{network.label:{width}}  failed: {next(iter(network.failures.values()), "no result")}')
                continue
            spread = f' ± {network.deviation:.2f}' if network.deviation is not None else ''
            text = f'{network.label:{width}}  {network.mean:6.2f}{spread}'
            if found := self.difference(network):
                interval = '' if found.low is None else f' ({found.low:+.2f} to {found.high:+.2f})'
                text = f'{text:{width + 17}}{found.mean:+.2f}{interval}: {found.words}'
            if network.cost and network.cost.relative:
                of = next(n.label for n in self.networks if n.cost and not n.cost.relative)
                text += f'; {network.cost.inference:.2f} x the time, {network.cost.memory:.2f} x the memory of {of}'
            lines.append(text)
        return '\n'.join(lines)
