"""The part that is Rust. Private: addresses are trusted."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

__version__: str
WEIGHTS: list[str]
GROUP_SIZES: list[int]
KV_DTYPES: list[str]

_Tensor: TypeAlias = tuple[str, str, list[int], int]
_Logprob: TypeAlias = tuple[int, float, list[tuple[int, float]]]
_Outcome: TypeAlias = tuple[int, str, list[int], str, int | str | None, list[_Logprob] | None, int]

def isa() -> str: ...
def after_fork() -> None: ...
def write_checkpoint(
    path: str,
    plain: list[_Tensor],
    packed: list[tuple[str, Weight]],
    metadata: dict[str, str],
) -> None: ...

class Moments:
    def __init__(self, k: int) -> None: ...
    def add(self, x: int, rows: int, num_threads: int) -> None: ...
    @property
    def tokens(self) -> int: ...

class Weight:
    @staticmethod
    def solve(
        rows: int,
        n: int,
        k: int,
        *,
        method: str,
        sparsity: float,
        numbers: str,
        group: int,
        reconstruct: bool,
        moments: Moments | None,
        num_threads: int,
    ) -> tuple[Weight, float, float, str | None]: ...
    @staticmethod
    def from_parts(n: int, k: int, parts: list[_Tensor], num_threads: int) -> Weight: ...
    def parts(self) -> list[_Tensor]: ...
    def unpack(self, out: int, dtype: int) -> None: ...
    def multiply(
        self,
        x: int,
        rows: int,
        stride: int,
        bias: int,
        bias_dtype: int,
        y: int,
        dtype: int,
        num_threads: int,
    ) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def group_size(self) -> int | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def nnz(self) -> int: ...

class Checkpoint:
    def __init__(self, path: str) -> None: ...
    def packed(self) -> list[tuple[str, int, int]]: ...
    def plain(self) -> list[_Tensor]: ...
    def weight(self, name: str, num_threads: int) -> Weight: ...

class KvCache:
    UNDO_TOKENS: int
    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        batch: int,
        key_sparsity: float,
        value_sparsity: float,
        numbers: str,
        rule: str,
        window: int,
        sinks: int,
        memory: int | None,
    ) -> None: ...
    def attend(
        self,
        layer: int,
        q: int,
        k: int,
        v: int,
        out: int,
        counts: list[int],
        scale: float,
        window: int | None,
        num_threads: int,
    ) -> None: ...
    def advance(self, counts: list[int]) -> None: ...
    def truncate(self, lengths: list[int]) -> bool: ...
    def select(self, indices: list[int]) -> None: ...
    def fork(self) -> KvCache: ...
    @property
    def nbytes(self) -> int: ...

class Engine:
    def __init__(
        self,
        path: str,
        *,
        threads: int | None,
        memory: int | None,
        max_model_len: int | None,
        max_num_seqs: int,
        speculation: bool,
        kv_memory: int | None,
        kv_dtype: str,
        key_sparsity: float,
        value_sparsity: float,
        window: int,
        sinks: int,
        rule: str,
        chat_template: str | None,
    ) -> None: ...
    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...
    def apply_chat_template(
        self,
        messages: str,
        tools: str,
        variables: str,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> list[int]: ...
    def generate(
        self,
        prompts: Sequence[str | list[int]],
        params: Sequence[Any],
        progress: Callable[[int], object] | None,
    ) -> tuple[list[list[int]], list[_Outcome]]: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def warnings(self) -> list[str]: ...
