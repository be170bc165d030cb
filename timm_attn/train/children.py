"""Runs of ``timm-attn finetune`` in processes of their own, whose output is passed on."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from ..printable import printable
from .options import RunError
from .run_lock import lock_folder

_OF_OTHERS = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'SLURM_NTASKS', 'SLURM_PROCID')
"""What tells timm that a process is one of several that train together. In a job of Slurm a run would wait for them."""


class Children:
    """Processes that train, several at the same time.

    Args:
        folder: Folder of the runs, which also gets a log of each.
        jobs: Runs at the same time. On a CPU they share its cores; each GPU gets one in turn.
        device: Device to train on.
    """

    def __init__(self, folder: Path, jobs: int, device: torch.device):
        self._folder, self._jobs, self._device = folder, jobs, device
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def finetune(self, run: Path, words: list[str], place: int) -> None:
        """Train one run to its end.

        Args:
            run: Folder of the run.
            words: Options of ``timm-attn finetune``.
            place: Which of the runs at the same time it is, from 0.

        Raises:
            RunError: If it ends with an error; the message is its last line.
            KeyboardInterrupt: If the user stopped it.
        """
        with (self._folder / f'{run.name}.log').open('a', encoding='utf-8') as log:
            with self._lock:
                if self._stopped:
                    raise KeyboardInterrupt
                child = subprocess.Popen(
                    [sys.executable, '-m', 'timm_attn', 'finetune', *words], env=self._environment(place),
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    encoding='utf-8', errors='replace',
                )  # fmt: skip
                self._running.add(child)
            error = ''
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    log.write(line)
                    log.flush()
                    if line.startswith('error: '):
                        error = line.removeprefix('error: ').strip()
                    if line.strip():
                        print(f'[{run.name}] {printable(line.rstrip())}', flush=True)
                status = child.wait()
            finally:
                _end(child)
                with self._lock:
                    self._running.discard(child)
        if status in (130, -signal.SIGINT) or self._stopped:
            raise KeyboardInterrupt
        if status:
            killed = f'it was ended by signal {-status}; for lack of memory?'
            reason = error or (killed if status < 0 else f'it ended with status {status}')
            raise RunError(f'{reason} (see {self._folder / f"{run.name}.log"})')

    def stop(self) -> None:
        """End what is running; a run loses the epoch that it is in."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            _end(child)

    def _environment(self, place: int) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if key not in _OF_OTHERS}
        if self._device.type == 'cuda' and self._device.index is None:
            visible = environment.get('CUDA_VISIBLE_DEVICES')
            names = visible.split(',') if visible else [str(i) for i in range(torch.cuda.device_count())]
            environment['CUDA_VISIBLE_DEVICES'] = names[place % len(names)]
        elif self._jobs > 1:
            environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // self._jobs)))
        return environment

    def wait_for(self, run: Path) -> None:
        """Wait for a process that still trains a run, as one does whose comparison was killed.

        Raises:
            KeyboardInterrupt: If the user stopped it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        waits = False
        while run.is_dir() and not self._stopped:
            try:
                with lock_folder(run):
                    return
            except RunError as e:
                if not waits:
                    print(f'waits: {e}', flush=True)
                waits = True
                time.sleep(1)
        if self._stopped:
            raise KeyboardInterrupt


def _end(child: subprocess.Popen) -> None:
    """End a process, the kind way first: a background process may not hear Ctrl-C."""
    for end in (lambda: child.send_signal(signal.SIGINT), child.terminate, child.kill):
        if child.poll() is not None:
            return
        with suppress(OSError, ValueError):  # it has just ended; a system without that signal
            end()
        with suppress(subprocess.TimeoutExpired):
            child.wait(10)
