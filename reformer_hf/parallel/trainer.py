"""A Trainer whose processes share every document.

accelerate knows sequence parallelism with DeepSpeed, and context parallelism of PyTorch's own
attention; neither fits attention that sorts whole sequences. What a stock `Trainer` needs besides
:func:`~reformer_hf.parallel.split_sequence` is little, and stands here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import Trainer

from reformer_hf.parallel import split_batch, split_sequence

# accelerate gives the processes along a dimension of this name the same batches.
_SAME_BATCH, _OTHER_BATCHES = "tp", "dp_replicate"


class SequenceParallelMixin:
    """For a subclass of `Trainer`: some processes share their sequences.

    The processes of the world form groups of ``sequence_parallel_size``, neighbours in rank. A
    group works on one batch, a part of every sequence on each process; groups work on different
    batches (DDP). Losses, gradients and the number of items are those of one process per group.

    Args:
        *args: of the `Trainer`.
        sequence_parallel_size: ``P``; 1: nothing is split.
        **kwargs: of the `Trainer`.

    Raises:
        ValueError: the number of processes is no multiple of ``P``, or the model cannot be split
            (:func:`~reformer_hf.parallel.split_sequence`).
    """

    def __init__(self, *args: Any, sequence_parallel_size: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sequence_parallel_size = sequence_parallel_size
        if sequence_parallel_size == 1:
            return
        accelerator, world = self.accelerator, self.args.world_size  # type: ignore[attr-defined]
        if sequence_parallel_size < 1 or world % sequence_parallel_size:
            raise ValueError(
                f"`sequence_parallel_size` must divide the number of processes, {world}, got "
                f"{sequence_parallel_size}"
            )
        sizes = (world // sequence_parallel_size, sequence_parallel_size)
        names = (_OTHER_BATCHES, _SAME_BATCH)
        mesh = init_device_mesh(accelerator.device.type, sizes, mesh_dim_names=names)
        accelerator.state.device_mesh = mesh
        split_sequence(self.model, mesh, dimension=_SAME_BATCH)  # type: ignore[attr-defined]

    def get_total_train_batch_size(self, args: Any) -> int:
        """Sequences of an optimizer step, each of them counted once."""
        size: int = super().get_total_train_batch_size(args)  # type: ignore[misc]
        return size // self.sequence_parallel_size

    # `Trainer` divides the loss by the items of all processes and multiplies it by their number.
    # Both count each item as often as processes share it, so that the two cancel.
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        """The loss of whole sequences, from this process's part."""
        return super().compute_loss(model, split_batch(model, inputs), *args, **kw)  # type: ignore[misc]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """The loss of a batch; predictions would come once from every process that shares it.

        Raises:
            ValueError: predictions were asked for.
        """
        if self.sequence_parallel_size > 1 and not prediction_loss_only:
            raise ValueError(
                "`prediction_loss_only` must be True while sequences are split, got False: for "
                "predictions, start again without `sequence_parallel_size`"
            )
        return super().prediction_step(model, inputs, prediction_loss_only, *args, **kw)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kw: Any) -> Any:
        """transformers' loop, in which every sequence counts once."""
        if self.sequence_parallel_size > 1:
            self.gather_function = self._gather_once
        return super().evaluation_loop(*args, **kw)  # type: ignore[misc]

    def _gather_once(self, losses: Tensor) -> Tensor:
        """The losses of a batch from one process of each group, without what filled the last one.

        accelerate would take one from every process, and cut the last batch to its own size: its
        sequences would count less than the others.
        """
        accelerator = self.accelerator  # type: ignore[attr-defined]
        gathered: Tensor = accelerator.gather(losses)
        found = gathered.view(accelerator.num_processes, -1)[:: self.sequence_parallel_size]
        state = accelerator.gradient_state
        cut = state.end_of_dataloader and state.remainder > 0
        return found.flatten()[: state.remainder] if cut else found.flatten()


class SequenceParallelTrainer(SequenceParallelMixin, Trainer):
    """transformers' `Trainer` with ``sequence_parallel_size``: :class:`SequenceParallelMixin`."""
