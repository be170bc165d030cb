"""The processes of a training run: their devices, their precision, and what the first of them does for all."""

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeVar

import torch
from timm import utils

from ..train.options import RunError
from ..train.run import leave_processes
from .image_results import import_extra

T = TypeVar('T')


def start_accelerator(args: argparse.Namespace, stack: ExitStack) -> Any:
    """Accelerate's handle of device, precision and processes; timm reads the last from ``args``."""
    accelerate, accelerate_utils = import_extra('accelerate'), import_extra('accelerate.utils')
    several = int(os.environ.get('WORLD_SIZE', '1')) > 1  # each has a device of its own, which accelerate chooses
    if args.device and args.device != 'cpu' and not several:
        os.environ['ACCELERATE_TORCH_DEVICE'] = args.device
        stack.callback(os.environ.pop, 'ACCELERATE_TORCH_DEVICE', None)
    of_launcher = os.environ.get('ACCELERATE_MIXED_PRECISION', 'no')
    on_cpu = accelerate_utils.parse_flag_from_env('ACCELERATE_USE_CPU')  # accelerate launch --cpu
    on_gpu = torch.cuda.is_available() and (args.device or 'cuda').startswith('cuda') and not on_cpu
    precision = dict(bfloat16='bf16', float16='fp16')[args.amp_dtype]
    if args.amp is None and of_launcher != 'no':
        precision = of_launcher
    elif not (on_gpu if args.amp is None else args.amp):
        precision = 'no'
    try:
        accelerator = accelerate.Accelerator(
            cpu=args.device == 'cpu' or (args.device is None and torch.backends.mps.is_available()),
            mixed_precision=precision,
            gradient_accumulation_plugin=accelerate_utils.GradientAccumulationPlugin(num_steps=args.grad_accum_steps),
            # the others wait while the first process checks the data
            kwargs_handlers=[accelerate_utils.InitProcessGroupKwargs(timeout=timedelta(hours=1))],
        )
    except (ValueError, RuntimeError) as e:
        raise RunError(f'accelerate cannot start with --device {args.device}, mixed precision {precision}: {e}') from e
    # leave no settings to a next run in this process
    stack.callback(import_extra('accelerate.state').AcceleratorState._reset_state, reset_partial_state=True)
    if accelerator.num_processes > 1:
        stack.push(leave_processes)
    kind = accelerator.distributed_type.value
    if kind in ('DEEPSPEED', 'FSDP', 'MEGATRON_LM'):
        raise RunError(f'{kind} of accelerate is not supported: launch with --multi_gpu, or with torchrun.')
    if accelerator.scaler is not None:
        accelerator.scaler.state_dict_key = utils.NativeScaler.state_dict_key  # under which timm's saver keeps it
    args.world_size, args.rank = accelerator.num_processes, accelerator.process_index
    args.local_rank, args.distributed = accelerator.local_process_index, accelerator.num_processes > 1
    return accelerator


def from_first(accelerator: Any, make: Callable[[], T]) -> T:
    """What the first process makes, in all processes."""
    if accelerator.num_processes == 1:
        return make()
    made: list[T | None] = [None]
    error = None
    if accelerator.is_main_process:
        try:
            made = [make()]
        except Exception as e:  # raised below, when the others know that nothing comes
            error = e
    import_extra('accelerate.utils').broadcast_object_list(made)
    if error:
        raise error
    if made[0] is None:
        raise RunError('the first process has stopped, and says why.')
    return made[0]
