"""A residual sub-layer: a module, and the step of the reversible engine that calls it.

A sub-layer ends with a matrix product. Where the stream before it was kept, its backward pass needs
the gradients of the residual but not its values, and can leave that product out: everything about
that is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import _has_any_global_hook

from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.footprint import Footprint, PassShape
from reformer_hf.layers.module_state import ModuleState
from reformer_hf.ops.first_order import first_order_only
from reformer_hf.ops.reversible import ReversibleStep, Take
from reformer_hf.ops.reversible.step import Surroundings

# What the last module reads, or a residual; and attention weights if they were asked for.
WithWeights = tuple[Tensor, Tensor | None]


class SubLayer(nn.Module):
    """Base of the sub-layers: ``residual = dropout(outer(inner(x)))``.

    Subclasses compute :meth:`hidden`, which stands for ``inner``, and name the module that stands
    for ``outer``: an ``nn.Linear``, or an ``nn.Sequential`` that ends with one.

    Under FSDP2 (``fully_shard``) the weights are whole only while the module is called, so there
    the engine's step is taken within such a call.
    """

    dropout: nn.Dropout
    # Attention returns its output and its weights, everything else its output.
    returns_weights: ClassVar[bool] = False

    def hidden(self, x: Tensor, *inputs: Tensor, context: ForwardContext | None) -> WithWeights:
        """What the last module reads, from a stream ``[B, N, d]``; and attention weights."""
        raise NotImplementedError

    @property
    def last_module(self) -> nn.Module:
        """The module that projects what is hidden to the stream's width."""
        raise NotImplementedError

    def footprint(self, shape: PassShape) -> Footprint:
        """Bytes of a pass."""
        raise NotImplementedError

    def chunk_size(self, x: Tensor) -> int:
        """Positions of ``x`` ``[B, N, d]`` that are computed together; 0: all of them."""
        del x
        return 0

    def forward(
        self,
        x: Tensor,
        *inputs: Tensor,
        context: ForwardContext | None = None,
        take: Take | None = None,
    ) -> Tensor | WithWeights:
        """What the sub-layer adds to one stream, from the other.

        Args:
            x: ``[B, N, d]``, the stream that is read; with ``take``, a token.
            *inputs: tensors that the residual depends on besides, and that may need gradients.
            context: settings of the forward pass.
            take: the step of the reversible engine is taken now, within this call.

        Returns:
            The residual ``[B, N, d]``; in attention also the weights, ``None`` unless ``context``
            asks for them.
        """
        if take is not None:
            # Calling the module again would bring in its parameters a second time.
            function = partial(self._residual, context=context)
            return take(x, function, tuple(self.parameters()))
        hidden, weights = self.hidden(x, *inputs, context=context)
        residual: Tensor = self.dropout(self.last_module(hidden))
        return (residual, weights) if self.returns_weights else residual

    def _residual(self, x: Tensor, *inputs: Tensor, context: ForwardContext | None) -> Tensor:
        """The residual alone, without calling the module."""
        return _with_weights(SubLayer.forward(self, x, *inputs, context=context))[0]

    def watched(self) -> bool:
        """Whether somebody's hook looks at what a module in here is given or returns."""
        return _has_any_global_hook() or any(map(has_hooks, self.modules()))

    def draws(self) -> bool:
        """Whether a call draws random numbers from torch's global generators."""
        return any(isinstance(m, _DropoutNd) and m.training and m.p > 0.0 for m in self.modules())

    # ---- without the last product ----

    def last_product(self) -> int:
        """Multiplications per position of the product that ends the sub-layer.

        0 if it cannot be left out: it is more than a product (an adapter, quantized weights), or
        somebody looks at what a module returns.
        """
        last = self._last_modules()[-1]
        patched = any("forward" in vars(m) for m in self.modules())
        if type(last) is not nn.Linear or patched or self.watched():
            return 0
        return last.in_features * last.out_features

    def _last_modules(self) -> list[nn.Module]:
        last = self.last_module
        return list(last) if isinstance(last, nn.Sequential) else [last]

    def _without_values(self, x: Tensor, *inputs: Tensor, context: ForwardContext | None) -> Tensor:
        """A tensor with the gradients of the residual, and without its values."""
        hidden, _ = self.hidden(x, *inputs, context=context)
        *before, last = self._last_modules()
        for module in before:
            hidden = module(hidden)
        zeros: Tensor = self.dropout(product_without_values(cast("nn.Linear", last), hidden))
        return zeros

    # ---- as a step of the engine ----

    def step(
        self, x: Tensor, context: ForwardContext | None = None, inputs: tuple[Tensor, ...] = ()
    ) -> ReversibleStep:
        """The sub-layer as a step of the engine.

        Args:
            x: ``[B, N, d]``, the embeddings that the streams start as.
            context: settings of the forward pass.
            inputs: tensors that the residual takes besides a stream and that may need gradients.
        """

        def function(x: Tensor, *inputs: Tensor) -> Tensor:
            return _checked(self(x, *inputs, context=context), x, self)

        parameters, chunk_size = tuple(self.parameters()), self.chunk_size(x)
        sharded = any(isinstance(part, FSDPModule) for part in self.modules())
        if sharded or any(map(_is_zero3, parameters)):

            def host(token: Tensor, take: Take) -> None:
                self._check_sharding()
                self(token, context=context, take=take)

            note_state = partial(self._note_state, weights=False)
            return ReversibleStep(function, (), inputs, chunk_size, host, note_state=note_state)
        without_values = None
        if self.last_product():
            without_values = partial(self._without_values, context=context)
        return ReversibleStep(
            *(function, parameters, inputs, chunk_size),
            without_values=without_values,
            note_state=self._note_state,
            draws=self.draws(),
        )

    def _note_state(self, weights: bool = True) -> Surroundings:
        return ModuleState(self, weights).reinstated

    def _check_sharding(self) -> None:
        """Make sure that the weights will be there in the backward pass of a reversible step.

        Raises:
            ValueError: modules inside the sub-layer are sharded for themselves, or by ZeRO-3.
        """
        if any(map(_is_zero3, self.parameters())):
            raise ValueError(
                "reversible layers need their weights in the backward pass, where DeepSpeed ZeRO-3 "
                "has removed them: use ZeRO-2, FSDP2 or `config.reversible=False`, got ZeRO-3"
            )
        if any(isinstance(part, FSDPModule) for part in self.modules() if part is not self):
            raise_wrong_sharding(type(self).__name__, "so are modules inside it")


@dataclass(frozen=True)
class SubLayerCall:
    """A sub-layer, and what it is called with in one forward pass.

    Attributes:
        module: the sub-layer.
        context: settings of the pass.
        inputs: tensors that the residual depends on besides the stream.
    """

    module: SubLayer
    context: ForwardContext
    inputs: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor) -> WithWeights:
        """The residual and attention weights, by plain autograd."""
        return _with_weights(self.module(x, *self.inputs, context=self.context))

    def residual(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """The residual alone, of :attr:`inputs` unless others are given."""
        found = self.module(x, *(inputs or self.inputs), context=self.context)
        return _checked(found, x, self.module)

    def step(self, x: Tensor, recomputed: bool) -> ReversibleStep:
        """The same as a step on streams that start as ``x``, to be computed again or not."""
        if recomputed:
            return self.module.step(x, self.context, self.inputs)
        return ReversibleStep(self.residual, (), self.inputs, self.module.chunk_size(x))


def _with_weights(returned: Tensor | WithWeights) -> WithWeights:
    """What a sub-layer returned, with ``None`` for the weights that it does not have."""
    return returned if isinstance(returned, tuple) else (returned, None)


def _checked(returned: Tensor | WithWeights, x: Tensor, module: nn.Module) -> Tensor:
    """The residual that a sub-layer returned, which a hook may have exchanged."""
    residual, _ = _with_weights(returned)
    if not isinstance(residual, Tensor) or residual.shape != x.shape:
        got = list(residual.shape) if isinstance(residual, Tensor) else type(residual).__name__
        raise ValueError(
            f"a {type(module).__name__} must return a residual {list(x.shape)} (did a hook return "
            f"something else?), got {got}"
        )
    return residual


class _LinearGradients(torch.autograd.Function):
    """``x W^T + b`` for the backward pass: zeros of its shape, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return x.new_zeros((*x.shape[:-1], weight.shape[0]))

    @staticmethod
    @first_order_only("set `config.reversible=False`")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_weight = rows.t().mm(x.flatten(0, -2)) if need_weight else None
        grad_bias = rows.sum(dim=0) if ctx.has_bias and need_bias else None
        return rows.mm(weight).view(x.shape) if need_x else None, grad_weight, grad_bias


def product_without_values(linear: nn.Linear, x: Tensor) -> Tensor:
    """Zeros in the place of ``linear(x)``, with its shape, its dtype and its gradients.

    Args:
        linear: ``[.., i] -> [.., o]``.
        x: ``[.., i]``.

    Returns:
        ``[.., o]``.
    """
    operands: list[Tensor | None] = [x, linear.weight, linear.bias]
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        operands = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in operands]
    zeros: Tensor = _LinearGradients.apply(*operands)
    return zeros


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own, forward or backward."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def _is_zero3(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id")


def raise_wrong_sharding(name: str, reason: str) -> NoReturn:
    """Refuse a model whose weights would not be there when they are needed.

    Raises:
        ValueError: always, with what to do instead.
    """
    raise ValueError(
        "`fully_shard` must be applied to the sub-layers (the classes in "
        f"`model._no_split_modules`) and the model, got {name}: {reason}"
    )
