"""Compare networks on a folder of images: train each under one recipe with several seeds, test, and report.

Each run is one of ``timm-attn finetune`` in a process of its own, so that a network which fails takes no other one with
it, and a comparison that was stopped at any point resumes.
"""

import argparse
import logging
import math
import os
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import timm
import torch
import yaml
from timm.models import safe_model_name
from torch import nn

from ..extras import missing_packages
from ..report import write_page
from ..timing import machine
from ..whole_file import write_json
from . import budget
from .answers import Answers
from .checkpoints import saving, write_options, write_text
from .children import Children
from .compare_costs import Cost, read_or_measure
from .compare_options import command_of
from .compare_pictures import show_disagreements
from .compare_report import make_page
from .compare_results import Network, Results
from .contestants import Contestant, parse_contestants
from .export import load_run
from .finetune_options import CONSTANT, recipe_of
from .image_folder import TRAIN_FOLDERS, open_folder, split_of
from .log import read_summary
from .options import RunError
from .run import interruptible
from .run_lock import lock_folder
from .split import Draw, Split, hold_out

_logger = logging.getLogger(__name__)

_LAST = 'last.pth.tar'


def compare(args: argparse.Namespace) -> Path:
    """Run a comparison, or what is left of it.

    Args:
        args: Options of :mod:`timm_attn.train.compare_options`.

    Returns:
        Folder of the comparison: ``report.html`` and ``report.md``, ``results.json``, and ``runs`` with a folder of
        ``timm-attn finetune`` for each network and seed.

    Raises:
        FolderError: If the data set cannot be trained on.
        RunError: If it cannot start, or a network could not be trained; those that could are in the report.
        Interrupted: If the user stopped it.
    """
    if advice := missing_packages():
        raise RunError(f'compare {advice}')
    if not args.data_dir:
        raise RunError('Name the folder of images, before the options: timm-attn compare DIR --models NAME NAME.')
    contestants = parse_contestants(args.models or [])
    name = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(Path(args.data_dir).resolve().name)}'
    folder = Path(args.resume or Path(args.output) / name)
    if not args.resume and (folder / 'args.yaml').exists():
        raise RunError(
            f'{folder} has a comparison already: resume it with --resume {folder}, or name another --experiment.'
        )
    data = _open_data(args, folder)
    with interruptible(folder), ExitStack() as stack:
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(lock_folder(folder))
        comparison = _Comparison(args, folder, contestants, data)
        comparison.prepare()
        comparison.train_and_test()
        comparison.report()
    return folder


@dataclass(frozen=True)
class _Data:
    """Images of a comparison.

    Attributes:
        train: Paths of the images to train on.
        test: Path and index of the class of each test image.
        classes: Names of the classes.
        root: Folder of the test images.
        split: Names of all.
        held_out: Whether the test images are a share of those for training.
    """

    train: list[str]
    test: list[tuple[str, int]]
    classes: list[str]
    root: Path
    split: Split
    held_out: bool


def _open_data(args: argparse.Namespace, folder: Path) -> _Data:
    """Images to train and test on; for a comparison that is resumed, its own.

    No epoch is chosen, so that the images that finetune validates on are test images to the comparison.
    """
    root = Path(args.data_dir)
    trains_apart = any((root / name).is_dir() for name in {args.train_split, *TRAIN_FOLDERS})
    if not args.val_split and trains_apart and (root / 'test').is_dir():
        args.val_split = 'test'
    before = Split.read(folder) if args.resume else None
    draw: Draw = before.draw if before else hold_out
    train, test, classes = open_folder(root, args.train_split, args.val_split, args.val_fraction, draw)
    split = split_of(train, test, root)
    if before:
        before.check(split, folder, args.data_dir, 'start a new comparison')
    held_out = train.reader.root == test.reader.root
    paths = [path for path, _ in train.reader.samples]
    return _Data(paths, list(test.reader.samples), classes, Path(test.reader.root), split, held_out)


@dataclass
class _Comparison:
    """A comparison that is under way.

    Attributes:
        args: Options.
        folder: Folder of the comparison.
        contestants: The networks.
        data: The images.
        failures: Network and seed -> why it failed.
    """

    args: argparse.Namespace
    folder: Path
    contestants: list[Contestant]
    data: _Data
    failures: dict[tuple[str, int], str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where networks are tested and timed."""
        return torch.device(self.args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))

    @property
    def seeds(self) -> range:
        """Seeds of each network."""
        return range(self.args.seed, self.args.seed + self.args.seeds)

    def prepare(self) -> None:
        """Choose what a budget asks for, and write the options."""
        args, data = self.args, self.data
        args.amp = self.device.type == 'cuda' if args.amp is None else args.amp
        options = {key: value for key, value in vars(args).items() if key not in CONSTANT}
        print(
            f'{args.data_dir}: {len(data.classes)} classes, {len(data.train)} images to train on, {len(data.test)} to '
            f'test on ({"held out" if data.held_out else data.root})',
            flush=True,
        )
        if args.minutes and not args.resume:
            self._choose()
        if args.seeds < 2:
            print('note: with one seed no difference is claimed, as the seed changes a result too', flush=True)
        options |= dict(data_dir=str(Path(args.data_dir).resolve()), resume=None, config=None)
        options |= dict(models=[one.label for one in self.contestants])
        options |= dict(val_split=args.val_split, img_size=args.img_size, epochs=args.epochs)
        with saving(self.folder):
            write_text(self.folder / 'split.json', data.split.as_text())
            write_text(self.folder / 'recipe.yaml', yaml.safe_dump(recipe_of(args), sort_keys=False))
            write_options(self.folder, options)  # last: what can be resumed has all of it
        print(f'{self.folder}: {len(self.contestants)} networks, seeds {self.seeds[0]} to {self.seeds[-1]}', flush=True)

    def _choose(self) -> None:
        """Image size and epochs that the budget allows."""
        args = self.args
        models = {}
        for one in self.contestants:
            try:
                models[one.label] = self._build(one)
            except Exception as e:  # what fails here fails in its run, which reports it
                _logger.warning(f'{one.label} takes no part in the estimate of time: {e}')
        if not models:
            raise RunError('No model could be built, so that --minutes cannot be kept.')
        sizes = budget.sizes_of(list(models.values()), args.img_size)
        autocast = partial(torch.autocast, self.device.type, getattr(torch, args.amp_dtype), enabled=args.amp)
        counts = len(self.data.train), len(self.data.test)

        def seconds(size: int) -> float:
            reading = budget.seconds_to_read(self.data.train, size, args)
            total = 0.0
            for label, model in list(models.items()):
                try:
                    total += budget.seconds_of_epoch(model, args, counts, reading, size, self.device, autocast)
                except Exception as e:
                    if size != sizes[0]:
                        _logger.warning(f'{label} does not take images of {size} pixels: {e}')
                        return math.inf
                    _logger.warning(f'{label} takes no part in the estimate of time: {e}')
                    del models[label]
            if not models:
                raise RunError('No model could be measured, so that --minutes cannot be kept.')
            return total * args.seeds

        runs = len(self.contestants) * args.seeds
        with self._threads_of_a_run():
            chosen = budget.plan(args.minutes, seconds, sizes, args.epochs, runs, self._at_once)
        args.img_size, args.epochs = chosen.image_size, chosen.epochs
        print(f'{self._plan}: about {chosen.minutes:.0f} minutes for {runs} runs', flush=True)
        models.clear()
        self._free()

    @property
    def _at_once(self) -> int:
        """Runs that do not wait for each other: one on each GPU, and on a CPU those that share its cores."""
        return self._jobs if self.device.type == 'cpu' else min(self._jobs, max(1, self._gpus))

    @contextmanager
    def _threads_of_a_run(self) -> Iterator[None]:
        """Context with as many threads as one of several runs has on a CPU."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, min(threads, (os.cpu_count() or 1) // self._jobs)))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @property
    def _plan(self) -> str:
        """What a budget has chosen, in words; empty where there is none."""
        args = self.args
        chosen = f'--img-size {args.img_size} --epochs {args.epochs}'
        return f'--minutes {args.minutes:g} chose {chosen}' if args.minutes else ''

    def _build(self, one: Contestant) -> nn.Module:
        """A network with random weights, to be measured."""
        torch.manual_seed(0)
        return timm.create_model(one.model, num_classes=len(self.data.classes), **one.kwargs).to(self.device)

    def _free(self) -> None:
        """Leave the memory of the GPU to the runs."""
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    @property
    def _gpus(self) -> int:
        """GPUs to spread the runs over; none where one was named."""
        return torch.cuda.device_count() if self.device.type == 'cuda' and self.device.index is None else 0

    @property
    def _jobs(self) -> int:
        """Runs at the same time."""
        return self.args.jobs or max(1, self._gpus)

    def train_and_test(self) -> None:
        """Train and test what is not finished."""
        self.failures.clear()
        # seed by seed, so that all networks have results early
        todo = [(one, seed) for seed in self.seeds for one in self.contestants]
        children = Children(self.folder / 'runs', self._jobs, self.device)
        places: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(self._jobs):
            places.put(place)

        def work(one: Contestant, seed: int) -> None:
            place = places.get()
            try:
                self._train_and_test(one, seed, children, place)
            except Exception as e:  # whatever one network raises must not end the comparison of the others
                self.failures[one.label, seed] = str(e) or type(e).__name__
                print(f'{one.label}, seed {seed}: failed: {self.failures[one.label, seed]}', flush=True)
            finally:
                places.put(place)

        with ThreadPoolExecutor(self._jobs) as pool:
            futures = [pool.submit(work, one, seed) for one, seed in todo]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                children.stop()
                raise

    def _train_and_test(self, one: Contestant, seed: int, children: Children, place: int) -> None:
        args = self.args
        if self._answers(one, seed):
            return
        run = self._run(one, seed)
        children.wait_for(run)
        if not (run / 'report.html').is_file():  # the last that a run writes
            machine_options = ['--workers', str(args.workers), '--device', str(self.device)]
            if (run / 'args.yaml').is_file():
                words = [args.data_dir, '--resume', str(run)]
            else:
                words = [
                    args.data_dir, '--config', str(self.folder / 'recipe.yaml'), *one.options, '--seed', str(seed),
                    '--output', str(run.parent), '--experiment', run.name,
                ]  # fmt: skip
            children.finetune(run, [*words, *machine_options], place)
        device = torch.device('cuda', place % self._gpus) if self._gpus else self.device
        model = load_run(run, self.data.classes, _LAST)[0].to(device)
        answers = Answers.of(model, self.data.test, self.data.classes, self.data.root, args.batch_size)
        del model
        self._free()
        with saving(self.folder):
            (self.folder / 'answers').mkdir(exist_ok=True)
            answers.write(self._answers_file(one, seed))
        print(f'{one.label}, seed {seed}: top-1 {answers.top1:.2f} % after the last epoch', flush=True)

    def _run(self, one: Contestant, seed: int) -> Path:
        return self.folder / 'runs' / f'{one.folder}.seed{seed}'

    def _answers_file(self, one: Contestant, seed: int) -> Path:
        return self.folder / 'answers' / f'{one.folder}.seed{seed}.json'

    def _answers(self, one: Contestant, seed: int) -> Answers | None:
        """What a network answered; None if it was not tested yet, or must be again."""
        file = self._answers_file(one, seed)
        if not file.is_file():
            return None
        try:
            return Answers.read(file)
        except RunError as e:
            _logger.warning(f'{e}: the network is tested again.')
            return None

    def report(self) -> None:
        """Measure the cost of the networks that have results, and write the report.

        Raises:
            RunError: If there is none.
        """
        args = self.args
        networks = [self._network(one) for one in self.contestants]
        if not any(network.answers for network in networks):
            raise RunError(f'No network could be trained. {self._reasons}')
        where = 'held out' if self.data.held_out else f'in the folder {self.data.root.name}'
        results = Results(
            networks=networks,
            data=Path(args.data_dir).resolve().name,
            tested_on=f'{len(self.data.test)} images {where}',
            trained_on=len(self.data.train),
            recipe=recipe_of(args),
            pretrained=args.pretrained,
            plan=self._plan,
            command=command_of(args),
            machine=machine(self.device),
        )
        self._write(results)  # before what may fail for want of memory
        costs = self._costs(results)
        for network in networks:
            network.cost = costs.get(network.label)
        self._write(results)
        disagreements, without = show_disagreements(results, self._load, self.data.root, args.pictures)
        with saving(self.folder):
            write_page(make_page(results, disagreements, without), self.folder)
        print(results.as_text())
        print(
            f'{self.folder / "report.html"}: open it in a browser; report.md is the same for a model card', flush=True
        )
        if self.failures:
            raise RunError(f'{len(self.failures)} of {len(networks) * args.seeds} runs failed. {self._reasons}')

    def _write(self, results: Results) -> None:
        with saving(self.folder):
            write_json(self.folder / 'results.json', results.as_dict(), indent=1)

    def _costs(self, results: Results) -> dict[str, Cost]:
        """Costs of the networks that have results; none where they cannot be measured."""
        tested = {network.label for network in results.finished}
        try:
            sizes = {
                one: self.args.img_size or self._build(one).pretrained_cfg['input_size'][-1]
                for one in self.contestants
                if one.label in tested
            }
            return read_or_measure(self.folder / 'costs.json', sizes, self._build, self.device)
        except Exception as e:  # such as too little memory; the results must not be lost for it
            _logger.warning(f'The costs cannot be measured: {e}')
            return {}

    @property
    def _reasons(self) -> str:
        """Why networks failed, each with its first seed that did; the report has all."""
        first = {label: (seed, why) for (label, seed), why in sorted(self.failures.items(), reverse=True)}
        return '; '.join(f'{label}, seed {seed}: {why}' for label, (seed, why) in sorted(first.items()))

    def _network(self, one: Contestant) -> Network:
        answers = {seed: found for seed in self.seeds if (found := self._answers(one, seed))}
        return Network(
            label=one.label,
            answers=answers,
            logs={seed: read_summary(self._run(one, seed) / 'summary.csv') for seed in answers},
            failures={seed: why for (label, seed), why in self.failures.items() if label == one.label},
        )

    def _load(self, network: Network) -> nn.Module:
        """A trained network, of its first seed with a result."""
        one = next(one for one in self.contestants if one.label == network.label)
        run = self._run(one, next(iter(network.answers)))
        return load_run(run, self.data.classes, _LAST)[0].to(self.device)
