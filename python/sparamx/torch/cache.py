"""A KV cache in packed pages for Transformers, and the attention that reads it.

Importing this registers the attention implementation ``sparamx`` with Transformers. It keeps and reads the pages of a
:class:`SparseCache`; with any other cache, or none, it is Transformers' ``sdpa``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

from .. import _native
from ._tensors import FLOATS, name, threads, warn

#: The name of the attention implementation.
IMPLEMENTATION = "sparamx"

_RULES = ("query", "magnitude", "token")

#: What an attention function can be asked for, and this one does not have, besides tensors that it does not know.
_UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias")
#: Tensors that it may get and does not need: masks and rotations are made of them before.
_HARMLESS = (
    "attention_mask position_ids cache_position position_embeddings token_type_ids mm_token_type_ids num_items_in_batch "
    "cu_seq_lens_q cu_seq_lens_k max_length_q max_length_k"
).split()

#: Rows of a mask that are compared at a time.
_MASK_ROWS = 64


class SparseCache(Cache):
    """Keys and values in pages of 64 tokens, which are pruned and packed once they leave a window of recent tokens.

    For models whose attention implementation is ``sparamx``::

        model.set_attn_implementation("sparamx")
        model.generate(**inputs, cache=SparseCache(sparsity=0.5))

    (Older versions of Transformers call the argument ``past_key_values``.)

    Pages that are not packed hold bf16. Padding is not kept: it takes no memory, and does not count in a sliding window.
    Copies (``copy.deepcopy``, beams) share pages until they differ. It is for inference, without ``torch.compile``.

    Args:
        sparsity: the share of zeros in packed keys and values, from 0 to below 1.
        key_sparsity: the same for keys alone; ``sparsity`` if None.
        value_sparsity: the same for values alone; ``sparsity`` if None.
        dtype: numbers of packed pages, ``bf16`` or ``int8``. With ``bf16`` and sparsity 0 no page is packed.
        window: so many of the last tokens stay dense, rounded up to pages.
        sinks: so many of the first tokens stay dense, rounded up to pages.
        rule: which numbers stay: ``query`` (of keys those that move scores most, by the queries so far; of values the
            largest), ``magnitude`` (the largest of a page) or ``token`` (the largest of each token).
        memory_bytes: most bytes of all pages; three quarters of the memory that is available if None.

    Raises:
        ValueError: naming the option, for one outside its range.
    """

    def __init__(
        self,
        sparsity: float = 0.0,
        *,
        key_sparsity: float | None = None,
        value_sparsity: float | None = None,
        dtype: str = "bf16",
        window: int = 64,
        sinks: int = 0,
        rule: str = "query",
        memory_bytes: int | None = None,
    ) -> None:
        super().__init__(layers=[])
        _check_share("sparsity", sparsity)
        self._options: dict[str, Any] = {
            "key_sparsity": _check_share("key_sparsity", sparsity if key_sparsity is None else key_sparsity),
            "value_sparsity": _check_share("value_sparsity", sparsity if value_sparsity is None else value_sparsity),
            "numbers": _check_name("dtype", dtype, _native.KV_DTYPES),
            "rule": _check_name("rule", rule, _RULES),
            "window": _check_count("window", window, 0),
            "sinks": _check_count("sinks", sinks, 0),
            "memory": None if memory_bytes is None else _check_count("memory_bytes", memory_bytes, 1),
        }
        self.reset()

    def reset(self) -> None:
        """Forgets all tokens and gives their memory back. The next ones may be of another model."""
        #: A _native.KvCache once there are tokens.
        self._native: Any = None
        #: Layers, heads, kv heads and head size.
        self._shape: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._batch = -1
        self._length = 0
        #: Which of the tokens are no padding, ``[batch, length]``; all if None. Never written to.
        self._kept: Tensor | None = None
        self._pass: _Pass | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hands keys and values ``[batch, kv heads, tokens, head size]`` on to the attention function, which stores them.

        Raises:
            TypeError, ValueError: if they are not on the CPU, or of a dtype or shape that pages do not hold.
        """
        for what, states in (("keys", key_states), ("values", value_states)):
            if states.dtype not in FLOATS:
                raise TypeError(f"the {what} are {name(states.dtype)}; a SparseCache takes float32, bfloat16 and float16")
            if states.device.type != "cpu":
                raise ValueError(f"the {what} are on {states.device}; a SparseCache is on the CPU")
        if key_states.dim() != 4 or key_states.shape != value_states.shape:
            raise ValueError(
                f"keys have shape {list(key_states.shape)} and values {list(value_states.shape)}; "
                "a SparseCache takes the same [batch, kv heads, tokens, head size] for both"
            )
        key, value = key_states.as_subclass(_Stored), value_states.as_subclass(_Stored)
        key.entry = (self, layer_idx, key_states, value_states)
        return key, value

    def attend(
        self,
        module: torch.nn.Module,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None,
    ) -> Tensor:
        """Stores keys and values of a layer and attends to them: ``[batch, tokens, heads, head size]``. Padding gets zeros."""
        batch, heads, tokens, head_dim = query.shape
        native = self._prepare(module, layer, query, key)
        step = self._pass
        if step is None or not step.done:
            step = self._pass = _Pass(batch, tokens, mask, self._padding(mask, batch, tokens))
        elif layer in step.done:
            raise RuntimeError(
                f"layer {layer} comes again before all {self._layers} layers had the tokens: the last forward pass was cut "
                "short (crop(0) forgets it), or the model has layers without keys of their own and cannot use a SparseCache"
            )
        elif (batch, tokens) != (step.batch, step.tokens):
            raise ValueError(
                f"layer {layer} adds {tokens} tokens to {batch} sequences, the layers before it {step.tokens} to {step.batch}"
            )
        elif mask is not step.mask:
            if not _equal(self._padding(mask, batch, tokens), step.columns):
                raise ValueError(f"layer {layer} has other padding than the layers before it")
            step.mask = mask
        columns = step.columns
        # The tensors must outlive the call.
        q, k, v = (_rows(states, columns) for states in (query, key, value))
        out = torch.empty(q.shape, dtype=torch.float32)
        native.attend(
            layer,
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            step.counts,
            1 / math.sqrt(head_dim) if scaling is None else scaling,
            mask.description.window if isinstance(mask, _Mask) else None,
            threads(),
        )
        step.done.add(layer)
        if len(step.done) == self._layers:
            self._advance(step)
        if columns is None:
            return out.to(query.dtype)
        attended = query.new_zeros(batch, tokens, heads, head_dim)
        attended[columns] = out.to(query.dtype)
        return attended

    def _prepare(self, module: torch.nn.Module, layer: int, query: Tensor, key: Tensor) -> _native.KvCache:
        """The native cache, made for the model when the first tokens come to its first layer."""
        batch, heads, _, head_dim = query.shape
        kv_heads = key.shape[1]
        if (batch, head_dim) != (key.shape[0], key.shape[3]) or query.shape[2] != key.shape[2] or heads % kv_heads:
            raise ValueError(f"queries of shape {list(query.shape)} do not go with keys of shape {list(key.shape)}")
        if self._length == 0 and not (self._pass and self._pass.done):
            # Nothing is kept yet, whatever a pass that failed may have wanted.
            self.reset()
            config: Any = module.config
            layers = config.get_text_config(decoder=True).num_hidden_layers
            self._shape = (layers, heads, kv_heads, head_dim)
            self._native = _native.KvCache(
                layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim, batch=batch, **self._options
            )
            self._batch = batch
        if self._shape[1:] != (heads, kv_heads, head_dim) or layer >= self._layers:
            raise ValueError(
                "a SparseCache holds {} layers of {} heads, {} kv heads and head size {}; ".format(*self._shape)
                + f"layer {layer} has {heads}, {kv_heads} and {head_dim}"
            )
        if batch != self._batch:
            raise ValueError(
                f"the SparseCache holds {self._batch} sequences and the model got {batch}: reset() it, or take a new one"
            )
        return self._native

    def _padding(self, mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
        """Which of the new tokens are no padding, ``[batch, tokens]``; None if all."""
        if mask is None:
            if self._kept is not None:
                raise ValueError(
                    "the SparseCache was filled with padded sequences: attention_mask must be given, for all tokens so far"
                )
            return None
        expected = (batch, self._length + tokens)
        if not isinstance(mask, _Mask):
            raise ValueError(
                f"the attention mask has shape {list(mask.shape)}; with a SparseCache it must say which tokens are padding, "
                f"{list(expected)}, and the model must attend causally, to all tokens or to a sliding window"
            )
        mask = mask.padding
        if mask.shape != expected:
            raise ValueError(f"attention_mask has shape {list(mask.shape)} and should have {list(expected)}, for all tokens so far")
        before, columns = mask.split((self._length, tokens), dim=1)
        if not (before.all() if self._kept is None else torch.equal(before, self._kept)):
            raise ValueError(
                "attention_mask is not what it was for the tokens that the SparseCache holds; if it is not given, generate "
                "makes it of the pad tokens"
            )
        return None if columns.all() else columns

    def _advance(self, step: _Pass) -> None:
        """All layers have the tokens of a pass."""
        self._native.advance(step.counts)
        if self._kept is not None or step.columns is not None:
            kept = torch.ones(step.batch, self._length, dtype=torch.bool) if self._kept is None else self._kept
            new = torch.ones(step.batch, step.tokens, dtype=torch.bool) if step.columns is None else step.columns
            self._kept = torch.cat((kept, new), dim=1)
        self._length += step.tokens
        self._pass = None

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last ``-tokens_to_remove`` tokens; a positive number is the length that is left.

        Raises:
            ValueError: if it cannot, because pages that would be the last ones are there only packed. Nothing changes then.
                The last 16 tokens can always be taken back.
        """
        length = tokens_to_remove if tokens_to_remove > 0 else max(self._length + tokens_to_remove, 0)
        self._pass = None
        if length >= self._length:
            return
        kept = None if self._kept is None else self._kept[:, :length]
        lengths = [length] * self._batch if kept is None else kept.sum(1).tolist()
        if not self._native.truncate(lengths):
            raise ValueError(
                f"{self._length - length} tokens cannot be taken back, as older pages are packed already: "
                f"at most {_native.KvCache.UNDO_TOKENS} can be for certain"
            )
        self._length = length
        self._kept = None if kept is None or kept.all() else kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes sequence ``i`` what sequence ``beam_idx[i]`` was. Beams share pages."""
        self._pass = None
        if self._native is None:
            return
        order = torch.arange(self._batch)[beam_idx.to("cpu")]
        self._native.select(order.tolist())
        self._batch = len(order)
        if self._kept is not None:
            self._kept = self._kept[order]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these sequences only."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence."""
        self.reorder_cache(torch.arange(max(self._batch, 0)).repeat_interleave(repeats))

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseCache:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.layers = []
        copy._native = None if self._native is None else self._native.fork()
        copy._pass = None
        return copy

    def __copy__(self) -> SparseCache:
        return self.__deepcopy__({})

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each sequence, padding included."""
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Tokens that a mask is about, and the first of them."""
        return self._length + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it grows."""
        return -1

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, those of copies included; shared ones count once."""
        return 0 if self._native is None else self._native.nbytes

    @property
    def batch_size(self) -> int:
        """Number of sequences, -1 before the first token."""
        return self._batch

    @property
    def is_initialized(self) -> bool:
        """Whether it has been used."""
        return self._native is not None

    @property
    def is_compileable(self) -> bool:
        """False: the model is run as it is."""
        return False

    @property
    def is_sliding(self) -> list[bool]:
        """False for every layer: all tokens are kept."""
        return [False] * self._layers

    @property
    def is_linear(self) -> list[bool]:
        """False for every layer: all hold keys and values."""
        return [False] * self._layers

    @property
    def is_dummy(self) -> list[bool]:
        """False for every layer: none shares keys with another."""
        return [False] * self._layers

    @property
    def _layers(self) -> int:
        return self._shape[0]

    def __len__(self) -> int:
        return self._layers

    def __repr__(self) -> str:
        options = ", ".join(f"{option}={value!r}" for option, value in self._options.items() if value is not None)
        return f"SparseCache({options}: {max(self._batch, 0)} x {self._length} tokens, {self.nbytes} bytes)"


class _Pass:
    """The tokens that a forward pass adds, and how far it is."""

    def __init__(self, batch: int, tokens: int, mask: Tensor | None, columns: Tensor | None) -> None:
        self.batch = batch
        self.tokens = tokens
        #: That of the layer before, which is known to fit.
        self.mask = mask
        #: Which tokens are no padding.
        self.columns = columns
        self.counts: list[int] = [tokens] * batch if columns is None else columns.sum(1).tolist()
        self.done: set[int] = set()


class _Stored(Tensor):
    """New keys or values on their way from a cache to the attention function. Others cannot use them: the rest is in pages."""

    #: Of keys: the cache, the layer, and keys and values as plain tensors.
    entry: tuple[SparseCache, int, Tensor, Tensor]

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.__name__ in ("__get__", "size", "dim", "stride", "numel", "is_contiguous"):
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
            if not isinstance(result, Tensor):
                return result
        raise RuntimeError(
            f"a SparseCache needs the attention implementation {IMPLEMENTATION!r}, and the model uses another: "
            f"call model.set_attn_implementation({IMPLEMENTATION!r}) first. If it was, the model is under torch.compile or "
            "works on cached keys and values in its own way, and cannot use a SparseCache"
        )


class _Description:
    """What a mask of padding leaves out."""

    def __init__(self, window: int | None, arguments: dict[str, Any]) -> None:
        #: So many of the last tokens are seen.
        self.window = window
        self._arguments = arguments
        self._full: Any = None

    def full(self) -> Tensor:
        """The mask by query and key, ``[batch, 1, queries, keys]``."""
        if self._full is None:
            self._full = sdpa_mask(**self._arguments, allow_is_causal_skip=False)
        return self._full


class _Mask(Tensor):
    """Which tokens are no padding, ``[batch, tokens]``, in place of the mask by query and key."""

    description: _Description

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """What a model computes from the mask, it computes from that by query and key, as with ``sdpa``."""
        args, kwargs = tree_map_only(_Mask, lambda mask: mask.description.full(), (args, kwargs or {}))
        return func(*args, **kwargs)

    @property
    def padding(self) -> Tensor:
        """As a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask function of ``sparamx``. Causal attention, of all tokens or a sliding window, gets the mask of padding, and None
    where ``sdpa`` would. Everything else gets what ``sdpa`` gets.
    """
    arguments = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        "local_size": local_size,
        "use_vmap": use_vmap,
        "device": device,
        **kwargs,
    }
    plain = allow_is_causal_skip and not use_vmap and kv_offset == 0 and _is_causal(**arguments)
    if not plain:
        return sdpa_mask(**arguments, allow_is_causal_skip=allow_is_causal_skip)
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is None:
        padding = torch.ones(1, 1, dtype=torch.bool, device=device).expand(batch_size, kv_length)
    within_window = local_size is None or kv_length < local_size
    if within_window and q_length in (1, kv_length) and padding.all():
        return None
    described = padding.as_subclass(_Mask)
    described.description = _Description(local_size, arguments)
    return described


def _is_causal(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int,
    mask_function: Callable,
    local_size: int | None,
    device: torch.device | str,
    **_: Any,
) -> bool:
    """Whether each token sees all before it, or those in a window of ``local_size``."""
    if mask_function is causal_mask_function:
        return True
    if local_size is None:
        return False
    keys = torch.arange(kv_length, device=device)
    batch = torch.arange(batch_size, device=device)[:, None, None, None]
    queries = torch.arange(q_length, device=device) + q_offset
    for rows in queries[:, None].split(_MASK_ROWS):
        wanted = (keys <= rows) & (keys > rows - local_size)
        if not (mask_function(batch, torch.zeros_like(batch), rows, keys) == wanted).all():
            return False
    return True


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of ``sparamx``."""
    if kwargs.get("output_attentions"):
        warn(f"the attention implementation {IMPLEMENTATION!r} gives no attention weights: use 'eager' for output_attentions=True")
    if not isinstance(key, _Stored):
        return _as_sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs), None
    cache, layer, key, value = key.entry
    asked = _not_computed(kwargs, ())
    if dropout:
        asked.append(f"dropout={dropout}")
    if not _causal(module, kwargs):
        asked.append("is_causal=False")
    if asked:
        raise ValueError(f"{_name(module)}: attention over a SparseCache does not support {', '.join(asked)}")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise RuntimeError("a SparseCache gives no gradients: call the model under torch.no_grad()")
    return cache.attend(module, layer, query, key, value, attention_mask, scaling), None


def _as_sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attention to keys and values of another cache, or of none."""
    asked = _not_computed(kwargs, ("position_bias",))
    tokens, keys = query.shape[2], key.shape[2]
    if isinstance(attention_mask, _Mask):
        attention_mask = attention_mask.description.full()
    elif attention_mask is not None and attention_mask.dim() != 4:
        asked.append(f"a mask of shape {list(attention_mask.shape)}")
    elif attention_mask is None and 1 < tokens < keys and _causal(module, kwargs):
        # As sdpa sees it, queries are the first tokens.
        asked.append(f"{tokens} queries for {keys} keys without a mask")
    if asked:
        raise ValueError(
            f"{_name(module)}: the attention implementation {IMPLEMENTATION!r} does not support {', '.join(asked)}: "
            "call model.set_attn_implementation('eager')"
        )
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]


def _not_computed(options: dict[str, Any], known: tuple[str, ...]) -> list[str]:
    """Which options of an attention function would change its result, and are none of those known."""
    return [
        option
        for option, value in options.items()
        if option not in known
        and option not in _HARMLESS
        and value is not None
        and (isinstance(value, Tensor) or option in _UNSUPPORTED)
    ]


def _causal(module: Any, options: dict[str, Any]) -> bool:
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True) and getattr(getattr(module, "config", None), "is_causal", True)
    return bool(is_causal)


def _name(module: Any) -> str:
    """The model that a layer is of, for messages."""
    return getattr(getattr(module, "config", None), "model_type", None) or type(module).__name__


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _rows(states: Tensor, columns: Tensor | None) -> Tensor:
    """``[batch, heads, tokens, head size]`` as rows of float32, one a token, those of padding left out."""
    rows = states.transpose(1, 2)
    if columns is not None:
        rows = rows[columns]
    return rows.to(torch.float32).contiguous()


def _check_share(option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{option}={value!r}: from 0 to below 1")
    return float(value)


def _check_count(option: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{option}={value!r}: a whole number, {least} or more")
    return value


def _check_name(option: str, value: Any, known: list[str] | tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{option}={value!r}: one of {', '.join(map(repr, known))}")
    return value


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, mask)
