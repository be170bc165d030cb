"""Publish the weights to the Hugging Face Hub: one model repository for each row of the manifest.

    python scripts/release.py build OUT                    # a folder for each weight, in the format of the Hub
    python scripts/release.py verify OUT                   # load each folder, compare with what was built
    python scripts/release.py push OUT --org ORG --dry-run # what would be uploaded
    python scripts/release.py push OUT --org ORG           # upload what differs; again after an interruption
    python scripts/release.py check --org ORG              # download each from the Hub and verify it

``--only 'csa_*'`` limits every command to some weights. Uploading needs a token (``hf auth login`` or HF_TOKEN).
Building needs the weights' sources: the network, or the caches. Weights whose licence does not allow it are neither
built nor pushed.
"""

import argparse
import fnmatch
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from bundle_weight import save_weights
from cards import render_card
from common import write_text
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.utils import RepositoryNotFoundError
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from timm_attn.cli import main as timm_attn_command
from timm_attn.train.export import atomic_folder, save_model
from timm_attn.weights import DownloadError, Weight, bundled, weights
from timm_attn.weights.download import explain, is_from_the_hub

FILES = ('model.safetensors', 'config.json', 'README.md', 'test_io.safetensors')
SUMS = 'SHA256SUMS'
TOLERANCE = 1e-4  # of the largest value: processors differ in the order of additions


class ReleaseError(Exception):
    """A weight that cannot be released as it is."""


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open('rb') as f:
        return sha_fileobj(f).hex()


def outputs(model: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits and pooled features of a model for some images."""
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        return dict(logits=model(images), features=features)


def build(weight: Weight, out: Path) -> str:
    """Write the folder of a weight; the previous one is kept until the new one is complete.

    Args:
        weight: Row of the manifest.
        out: Folder of all folders.

    Returns:
        What was done.
    """
    torch.manual_seed(0)  # a warm start has fresh layers; every build draws the same
    model = timm.create_model(weight.name, pretrained=True).eval()
    with atomic_folder(out / weight.name) as part:
        save_model(model, part)
        if weight.file:
            shutil.copyfile(bundled(weight.file), part / 'model.safetensors')
        else:
            save_weights(model, part / 'model.safetensors')  # with the format noted in it, as other libraries ask
        (part / 'README.md').write_text(render_card(weight), encoding='utf-8')
        images = torch.randn(2, weight.input_size[0], *(min(64, s) for s in weight.input_size[1:]))
        save_file({'input': images, **outputs(model, images)}, part / 'test_io.safetensors')
        sums = {k: v for k, v in read_sums(out).items() if not k.startswith(f'{weight.name}/')}
        sums |= {f'{weight.name}/{file}': sha256(part / file) for file in FILES}
    write_sums(out, sums)
    return f'built, {sum((out / weight.name / file).stat().st_size for file in FILES) / 1e6:.1f} MB'


def read_sums(out: Path) -> dict[str, str]:
    """Checksums of the built files by path, in the format of sha256sum."""
    path = out / SUMS
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    return {name: sha for sha, name in (line.split('  ', 1) for line in lines)}


def write_sums(out: Path, sums: dict[str, str]) -> None:
    """Write the checksums; a crash leaves the old ones complete."""
    write_text(out / SUMS, ''.join(f'{sha}  {name}\n' for name, sha in sorted(sums.items())))


def check_folder(weight: Weight, out: Path) -> Path:
    """Check that the folder of a weight holds the files that were built from the present manifest, and nothing else.

    Raises:
        ReleaseError: If it does not.
    """
    folder, sums = out / weight.name, read_sums(out)
    if not folder.is_dir():
        raise ReleaseError(f'{folder} does not exist; build it first')
    surplus = sorted(p.name for p in folder.iterdir() if p.name not in FILES)
    if surplus:
        raise ReleaseError(f'{folder} also holds {", ".join(surplus)}; build it again')
    for file in FILES:
        if not (folder / file).is_file() or sums.get(f'{weight.name}/{file}') != sha256(folder / file):
            raise ReleaseError(f'{folder / file} is not the file that was built; build it again')
    _check_manifest(weight, folder / 'model.safetensors', folder / 'README.md')
    return folder


def _check_manifest(weight: Weight, model_file: Path, card: Path) -> None:
    """Check weights and card against the manifest."""
    if weight.sha256 and sha256(model_file) != weight.sha256:
        raise ReleaseError(f'{model_file} is not the file that the manifest gives; build it again')
    if card.read_text(encoding='utf-8') != render_card(weight):
        raise ReleaseError(f'{card} is not the card that the manifest renders; build it again')


def compare(model: torch.nn.Module, test_io: Path) -> float:
    """Largest deviation of a model from the outputs in ``test_io.safetensors``, relative to the largest value.

    Raises:
        ReleaseError: If it is above the tolerance, or not a number.
    """
    expected = load_file(test_io)
    got = outputs(model.eval(), expected['input'])
    deviations = [
        ((got[key] - expected[key]).abs().max() / expected[key].abs().max()).item() for key in ('logits', 'features')
    ]
    for deviation in deviations:
        if not deviation <= TOLERANCE:  # also where it is not a number
            raise ReleaseError(f'its outputs deviate by {deviation:.1e} from those in test_io.safetensors')
    return max(deviations)


def verify(weight: Weight, out: Path) -> str:
    """Load the folder of a weight as a user would and compare with what was built.

    Args:
        weight: Row of the manifest.
        out: Folder of all folders.

    Returns:
        What was found.
    """
    folder = check_folder(weight, out)
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    deviation = compare(model, folder / 'test_io.safetensors')
    return f'{len(FILES)} checksums right, outputs within {deviation:.1e}'


def push(weight: Weight, out: Path, org: str, private: bool, dry_run: bool, api: HfApi) -> str:
    """Upload what differs from the Hub, in one commit; files of an interrupted upload are not sent again.

    Args:
        weight: Row of the manifest.
        out: Folder of all folders.
        org: User or organization.
        private: Create the repository as a private one.
        dry_run: Only tell what would be done.
        api: Client of the Hub.

    Returns:
        What was done.
    """
    folder, repo_id = check_folder(weight, out), f'{org}/{weight.name}'
    try:
        there = {s.rfilename: s for s in api.model_info(repo_id, files_metadata=True).siblings}
        exists = True
    except RepositoryNotFoundError:
        there, exists = {}, False
    changed = [file for file in FILES if not _same(there.get(file), folder / file)]
    size = sum((folder / file).stat().st_size for file in changed) / 1e6
    if exists and not changed:
        return 'nothing to upload'
    what = f'{", ".join(changed)} ({size:.1f} MB)' + ('' if exists else ' to a new repository')
    if dry_run:
        return f'would upload {what}'
    if not exists:
        api.create_repo(repo_id, private=private, exist_ok=True)
    operations = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=str(folder / file)) for file in changed]
    api.create_commit(repo_id, operations, commit_message=f'{weight.name}: {", ".join(changed)}')
    return f'uploaded {what}'


def _same(sibling, path: Path) -> bool:
    """Whether a file on the Hub has the bytes of a local one."""
    if sibling is None or sibling.size != path.stat().st_size:
        return False
    if sibling.lfs:
        return sibling.lfs['sha256'] == sha256(path)
    return sibling.blob_id == git_hash(path.read_bytes())


def check(weight: Weight, org: str) -> str:
    """Load a weight from the Hub as a user would, past every cache, and compare with what was published beside it.

    Args:
        weight: Row of the manifest.
        org: User or organization.

    Returns:
        What was found.
    """
    repo_id = f'{org}/{weight.name}'
    names = [s.rfilename for s in HfApi().model_info(repo_id).siblings]
    surplus = [name for name in names if name not in FILES and not name.startswith('.')]
    if surplus:
        raise ReleaseError(f'{repo_id} also holds {", ".join(surplus)}; delete that there')
    with tempfile.TemporaryDirectory() as cache:
        model = timm.create_model(f'hf-hub:{repo_id}', pretrained=True, cache_dir=cache)
        files = {file: Path(hf_hub_download(repo_id, file, cache_dir=cache)) for file in FILES}
        _check_manifest(weight, files['model.safetensors'], files['README.md'])
        deviation = compare(model, files['test_io.safetensors'])
    return f'loads from the Hub, outputs within {deviation:.1e}'


def selected(pattern: str) -> list[Weight]:
    """Weights that may be published and match a wildcard.

    Raises:
        ReleaseError: If there are none.
    """
    found = [w for w in weights().values() if w.kind != 'untrained' and fnmatch.fnmatch(w.name, pattern or '*')]
    for weight in found:
        if not weight.redistributable:
            print(f'{weight.name}: left out, its licence does not allow it; users get it from {weight.origin}')
    found = [w for w in found if w.redistributable]
    if not found:
        raise ReleaseError(f'no weight that may be published matches {pattern!r}')
    return found


def run_all(action: Callable[[Weight], str], pattern: str, upload: bool = False) -> int:
    """Do something with each selected weight; one that fails does not stop the others.

    Returns:
        The number of weights that failed.
    """
    todo, failed = selected(pattern), 0
    for i, weight in enumerate(todo, start=1):
        print(f'[{i}/{len(todo)}] {weight.name}: ', end='', flush=True)
        try:
            print(action(weight), flush=True)
        except Exception as e:
            known = isinstance(e, (ReleaseError, DownloadError, OSError, RuntimeError, ValueError, SafetensorError))
            if not (known or is_from_the_hub(e)):
                raise
            failed += 1
            explained = is_from_the_hub(e) and not isinstance(e, DownloadError)
            print(f'FAILED: {explain(e, weight.name, upload=upload) if explained else e}', flush=True)
    print(f'{len(todo) - failed} of {len(todo)} done' + (f', {failed} failed' if failed else ''))
    return failed


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments, those of the process if None.

    Returns:
        Exit status: 0, 1 where a weight failed, or 2 where the input was wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['export']:
        print('release.py export is deprecated, use: timm-attn export RUN OUT', file=sys.stderr)
        return timm_attn_command(argv)
    parser = argparse.ArgumentParser(description='Publish the weights to the Hugging Face Hub.')
    commands = parser.add_subparsers(required=True, dest='command', metavar='COMMAND')
    for name, text in dict(
        build='write a folder for each weight',
        verify='load each folder and compare with what was built',
        push='upload what differs from the Hub',
        check='download each weight from the Hub and verify it',
    ).items():
        p = commands.add_parser(name, help=text, description=text)
        if name != 'check':
            p.add_argument('out', type=Path, metavar='OUT', help='folder of the built folders')
        if name in ('push', 'check'):
            p.add_argument('--org', required=True, help='user or organization on the Hub')
        if name == 'push':
            p.add_argument('--private', action='store_true', help='create new repositories as private ones')
            p.add_argument('--dry-run', action='store_true', help='only tell what would be uploaded')
        p.add_argument('--only', default='', metavar='FILTER', help="wildcard of weights, such as 'csa_*'")
    args = parser.parse_args(argv)
    try:
        if args.command == 'build':
            args.out.mkdir(parents=True, exist_ok=True)
            failed = run_all(lambda w: build(w, args.out), args.only)
        elif args.command == 'verify':
            failed = run_all(lambda w: verify(w, args.out), args.only)
        elif args.command == 'push':
            api = HfApi()
            failed = run_all(
                lambda w: push(w, args.out, args.org, args.private, args.dry_run, api), args.only, upload=True
            )
        else:
            failed = run_all(lambda w: check(w, args.org), args.only)
    except (ReleaseError, OSError, RuntimeError, ValueError) as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
