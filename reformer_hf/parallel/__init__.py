"""One document over several devices: every process holds a part of every sequence.

    mesh = init_device_mesh("cuda", (world_size,), mesh_dim_names=("sp",))
    model = DistributedDataParallel(split_sequence(model, mesh))
    loss = model(**split_batch(model, batch)).loss      # batch: the same on all ranks of the mesh
    loss.backward()

With ``P`` processes embeddings, streams, feed-forward layers, head and loss work on ``N / P``
tokens each. Attention works on ``H / P`` heads of all tokens: two exchanges around each attention
layer (DeepSpeed-Ulysses, arXiv:2309.14509). The loss is that of the whole batch, on every rank, and
the *mean* of the ranks' gradients is its gradient, so `DistributedDataParallel` and FSDP2 over the
whole world finish what is begun here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.ops.sequence_group import SequenceGroup, balanced_lengths

__all__ = ["gather_sequence", "split_batch", "split_sequence"]

Model = TypeVar("Model", bound=nn.Module)

_DIMENSION = "sp"


def split_sequence(
    model: Model,
    mesh: DeviceMesh | None,
    *,
    dimension: str = _DIMENSION,
    split_target: bool = False,
) -> Model:
    """Let the processes of a mesh share every sequence that a model is given.

    Hash rotations, numbers of buckets, positions, padding and attention dropout are those of one
    process; other dropout draws other numbers for other tokens. The model reads parts of batches
    from now on (:func:`split_batch`) and returns the loss of the whole batch; logits and hidden
    states of tokens are those of its own (:func:`gather_sequence`).

    Args:
        model: a model of this package, or one that is wrapped around one (PEFT). It is changed in
            place; nothing of it is saved in a checkpoint.
        mesh: with one dimension, or with one that is called ``dimension``, whose processes share
            sequences; other dimensions hold other batches. ``None``: the model is whole again.
        dimension: name of the dimension in a mesh with several.
        split_target: split the target of an encoder-decoder as well. Targets are short as a rule,
            and every rank decodes the whole of them.

    Returns:
        The model.

    Raises:
        ValueError: no model of this package; no such dimension; a number of heads that the ranks
            cannot share evenly; the ``chunk`` pattern, whose ring of chunks depends on all tokens;
            ``split_target`` without a decoder.
    """
    parts = [m for m in model.modules() if isinstance(m, ReformerPreTrainedModel)]
    if not parts:
        raise ValueError(
            f"`model` must be a model of reformer_hf, got a {type(model).__name__} without one"
        )
    group = None if mesh is None else _group(mesh, dimension)
    if group is not None:
        _check(parts[0].config, group.size)
        if split_target and not any(part.target_arguments for part in parts):
            raise ValueError(
                f"`split_target` needs an encoder-decoder, got a {type(parts[0]).__name__}"
            )
    for part in parts:
        part.sequence_group = group
        part.target_is_split = group is not None and split_target
    return model


def split_batch(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """This rank's part of a batch that all ranks which share its sequences were given.

    What there is for every token is cut into consecutive parts whose lengths differ by at most
    one; everything else, such as the classes of sequences and the positions of answers, stays.

    Args:
        model: from :func:`split_sequence`, or wrapped around such a model.
        batch: keyword arguments of the model; tensors of tokens are ``[B, N, ..]``.

    Returns:
        The same, with views of tensors. The batch itself where the model is whole.

    Raises:
        ValueError: tensors of tokens that differ in length, fewer tokens than ranks, or ranks that
            were given different batches. All ranks refuse together.
    """
    part = _outermost(model)
    group = part.sequence_group
    if group is None:
        return dict(batch)
    with group.together():
        cut, checksum = _cut(part, group, batch), _checksum(batch)
    found = [own for (own,) in group.exchange(checksum)]
    if len(set(found)) > 1:
        raise ValueError(
            "`batch` must be the same on all ranks that share its sequences, got batches that "
            f"differ on ranks {[rank for rank, own in enumerate(found) if own != found[0]]}: "
            "does a sampler give every process its own?"
        )
    return cut


def _cut(
    part: ReformerPreTrainedModel, group: SequenceGroup, batch: Mapping[str, Any]
) -> dict[str, Any]:
    sides = [part.token_arguments]
    if part.target_is_split:
        sides.append(part.target_arguments)
    cut = dict(batch)
    for names in sides:
        held = {n: x for n in names if isinstance(x := batch.get(n), Tensor) and x.dim() > 1}
        if len({x.shape[1] for x in held.values()}) > 1:
            lengths = {name: x.shape[1] for name, x in held.items()}
            raise ValueError(f"tensors of tokens must have one length, got {lengths}")
        for name, x in held.items():
            cut[name] = x[:, _span(x.shape[1], group, name)]
    return cut


def _checksum(batch: Mapping[str, Any]) -> int:
    """A number that other integers in a batch would change."""
    total = 0
    for name, x in sorted(batch.items()):
        if isinstance(x, Tensor) and not x.is_floating_point() and x.numel():
            flat = x.flatten().to(torch.int64)
            weights = torch.arange(flat.numel(), device=x.device) % 8191 + len(name)
            total += int((flat * weights).sum()) + flat.numel()
    return total % (1 << 62)


def gather_sequence(model: nn.Module, x: Tensor) -> Tensor:
    """What all ranks hold of their tokens ``[B, n, ..]``, behind one another: ``[B, N, ..]``.

    Every rank must call it. The gradient of a part is the sum of what the ranks find for it.

    Args:
        model: from :func:`split_sequence`, or wrapped around such a model; ``x`` itself is returned
            where it is whole.
        x: logits or hidden states of this rank's tokens.
    """
    group = _outermost(model).sequence_group
    return x if group is None else group.gather(x)


def _outermost(model: nn.Module) -> ReformerPreTrainedModel:
    """The model of this package that a module is, or holds."""
    for module in model.modules():
        if isinstance(module, ReformerPreTrainedModel):
            return module
    raise ValueError(
        f"`model` must be a model of reformer_hf, got a {type(model).__name__} without one"
    )


def _span(length: int, group: SequenceGroup, name: str) -> slice:
    if length < group.size:
        raise ValueError(
            f"`{name}` must have at least as many tokens as ranks share them, {group.size}, "
            f"got {length}"
        )
    ends = (0, *accumulate(balanced_lengths(length, group.size)))
    return slice(ends[group.rank], ends[group.rank + 1])


def _group(mesh: DeviceMesh, dimension: str) -> SequenceGroup:
    if not isinstance(mesh, DeviceMesh):
        raise ValueError(f"`mesh` must be a DeviceMesh or None, got a {type(mesh).__name__}")
    if not torch.distributed.is_initialized():
        raise ValueError("`mesh` needs an initialized process group, got none")
    if mesh.ndim == 1:
        return SequenceGroup(mesh.get_group())
    names = mesh.mesh_dim_names or ()
    if dimension not in names:
        raise ValueError(
            f"`mesh` must have one dimension or one that is called {dimension!r}, "
            f"got {mesh.ndim} dimensions called {list(names)}"
        )
    return SequenceGroup(mesh.get_group(dimension))


def _check(config: ReformerConfig, ranks: int) -> None:
    heads = config.num_attention_heads
    if heads % ranks:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"`num_attention_heads` must be a multiple of the ranks that share a sequence, got "
            f"{heads} heads and {ranks} ranks; {heads} heads go to {fitting} ranks"
        )
    if config.attention_pattern == "chunk":
        raise ValueError(
            "sequences can be split in the attention pattern 'window' alone, got "
            f"{config.attention_pattern!r}"
        )
