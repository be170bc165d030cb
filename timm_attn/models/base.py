"""The base of every model here."""

from collections.abc import Callable

import torch

from .._compat import ConvertsStateDict
from ..layers.groups import without_attention
from ..weights.convert import CheckpointError, describe_misfit, has_new_head, keep_fresh_head, rename_keys


class ZooModel(ConvertsStateDict):
    """Base of every model here: ``load_state_dict`` also takes checkpoints with the keys of the authors' code.

    With the authors' keys, a classifier for another number of classes is left out, as timm does, if the model was made
    for a number of classes that is not its default; the model then keeps its fresh classifier, and a warning says so.
    """

    rename_key: Callable[[str], str] = staticmethod(lambda key: key)
    """Key of a foreign checkpoint, without wrapper prefixes -> our key. Our own keys are returned as they are."""

    absorbs_gate: dict[str, tuple[str, ...]] = {}
    """For warm starts: what a block calls its attention -> the layers beside it that can take up a factor, the first
    that the block has."""

    no_warm_start: str | None = None
    """Why the weights of a plain backbone are no start, and what to do instead; None where they are one."""

    def misfit_hint(self, wrong: list[str], own: dict, given: dict) -> str | None:
        """The next step where a checkpoint does not fit for a reason that only this family knows.

        Args:
            wrong: Keys that are missing, unexpected or of another shape.
            own: Shapes of the model's tensors by key.
            given: Shapes of the checkpoint's tensors by key.

        Returns:
            A sentence, or None.
        """
        return None

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are never decayed, besides biases and norms: none."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that group the parameters by depth, for learning rates that fall from layer to layer.

        Attention does not count as part of its block but, as the classifier, of the last group: after a warm start it
        is what has to be learned, so that timm's ``layer_decay`` leaves it the full learning rate.

        Args:
            coarse: Groups are stages, with their attention, instead of blocks.
        """
        matcher = super().group_matcher(coarse=coarse)
        if coarse or not self.absorbs_gate:
            return matcher
        return without_attention(matcher, rf'.*\.(?:{"|".join(self.absorbs_gate)})\.')

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As ``torch.nn.Module.load_state_dict``, with a short message where the checkpoint does not fit.

        Args:
            state_dict: Tensors by key, ours or the authors'.
            strict: Raise on a missing or an unexpected tensor.
            assign: Take over the tensors themselves, not their values.

        Returns:
            The missing and the unexpected keys.

        Raises:
            CheckpointError: If the checkpoint does not fit; the message says where and what to do.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as e:
            message = describe_misfit(rename_keys(state_dict, self), self)
            if message is None:
                raise
            raise CheckpointError(message) from e

    def convert_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors in the authors' keys -> in ours; called wherever the model or a module that contains it is loaded."""
        renamed = rename_keys(state_dict, self)
        if renamed.keys() != state_dict.keys() and has_new_head(self):
            keep_fresh_head(renamed, self)
        return renamed
