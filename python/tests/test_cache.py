"""The KV cache: what models compute with it, what it remembers, and what it refuses."""

import concurrent.futures
import copy
import inspect
import itertools
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

transformers = pytest.importorskip("transformers")

from sparamx.torch import SparseCache  # noqa: E402
from sparamx.torch.cache import attention, mask  # noqa: E402

VOCABULARY = 61
#: What models call the argument.
CACHE = "cache" if "cache" in inspect.signature(transformers.LlamaForCausalLM.forward).parameters else "past_key_values"
#: Largest relative error of rounding to bf16.
BF16 = 2.0**-8
#: Bytes of a dense page of a layer and a kv head of the models here: keys are padded to 32 columns, values need no padding.
PAGE_BYTES = (32 + 16) * 64 * 2


@pytest.fixture(autouse=True)
def one_thread():
    # These models are too small for more: threads that wait for each other take a hundred times as long on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rounded_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """``eager``, with everything rounded to bf16 that a kernel may round."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.bfloat16().float().repeat_interleave(groups, 1) for x in (key, value))
    scores = (query * scaling).bfloat16().float() @ key.transpose(2, 3)
    weights = torch.softmax(scores + attention_mask, -1).bfloat16().float()
    return (weights @ value).transpose(1, 2), None


transformers.AttentionInterface.register("rounded", rounded_attention)
transformers.AttentionMaskInterface.register("rounded", transformers.AttentionMaskInterface()["eager"])


def llama(**options):
    return make(transformers.LlamaForCausalLM, transformers.LlamaConfig, num_key_value_heads=2, **options)


def qwen2(**options):
    return make(transformers.Qwen2ForCausalLM, transformers.Qwen2Config, num_key_value_heads=1, **options)


def qwen2_windows(**options):
    """Its second layer sees 40 tokens."""
    layers = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True, "sliding_window": 40}
    return qwen2(**layers, **options)


def mistral(**options):
    return make(transformers.MistralForCausalLM, transformers.MistralConfig, num_key_value_heads=2, sliding_window=150, **options)


def gpt2(**options):
    return make(transformers.GPT2LMHeadModel, transformers.GPT2Config, **options)


def make(model, config, **options):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    # Large weights: attention is far from even.
    rest = {"initializer_range": 0.06, "max_position_embeddings": 1024}
    options = {**sizes, **ids, **rest, **options}
    if config is transformers.GPT2Config:
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
        options = {names.get(key, key): value for key, value in options.items()}
    made = model(config(**options)).eval()
    made.set_attn_implementation("sparamx")
    return made


FAMILIES = [llama, qwen2, qwen2_windows, mistral, gpt2]


def prompt(batch, tokens):
    return torch.randint(1, VOCABULARY, (batch, tokens))


@torch.no_grad()
def logits(model, ids, implementation="sparamx", cache=None, **options):
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        return model(ids, **{CACHE: cache}, use_cache=cache is not None, **options).logits
    finally:
        model.set_attn_implementation(before)


def dense_and_tolerance(model, ids, **options):
    """Logits without a cache, and by how much those of bf16 keys, values, queries and weights may be off: three times what
    rounding them makes of the logits somewhere."""
    dense = logits(model, ids, "sdpa", **options)
    real = options.get("attention_mask", torch.ones_like(ids)).bool()
    return dense, 3 * (logits(model, ids, "rounded", **options) - dense)[real].abs().max()


def positions(attention_mask):
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def check_greedy(model, sequences, start, **options):
    """Every token from ``start`` on is the most likely one, as far as that can be told; for most it can."""
    dense, tolerance = dense_and_tolerance(model, sequences, **options)
    dense = dense[:, start - 1 : -1]
    best = dense.topk(2).values
    chosen = dense.gather(2, sequences[:, start:, None])[..., 0]
    assert (chosen >= best[..., 0] - 2 * tolerance).all()
    assert (best[..., 0] - best[..., 1] > 2 * tolerance).float().mean() > 0.5


def generate(model, ids, cache, new=80, **options):
    return model.generate(ids, **{CACHE: cache}, max_new_tokens=new, do_sample=False, **options)


# What is computed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads,kv_heads,head_dim,window", [(4, 2, 16, None), (3, 1, 24, 50), (2, 2, 64, None)])
def test_attention_is_exact_but_for_rounding(heads, kv_heads, head_dim, window, dtype):
    cache, layers = SparseCache(), 2
    module = SimpleNamespace(config=transformers.LlamaConfig(num_hidden_layers=layers), is_causal=True)
    past = [(torch.zeros(2, kv_heads, 0, head_dim),) * 2 for _ in range(layers)]
    seen = 0
    for tokens in [100, 1, 1, 30, 70, 1]:
        seen += tokens
        at = torch.arange(seen)
        visible = at <= at[-tokens:, None]
        if window is not None:
            visible &= at > at[-tokens:, None] - window
        made = mask(
            2,
            tokens,
            seen,
            seen - tokens,
            mask_function=lambda b, h, q, k: (k <= q) & (k > q - (window or 10**6)),
            local_size=window or 10**6,
        )
        for layer in range(layers):
            scaling = 1.2 / math.sqrt(head_dim)
            q, k, v = (torch.randn(2, tokens, n, head_dim).to(dtype).transpose(1, 2) for n in (heads, kv_heads, kv_heads))
            out, _ = attention(module, q, *cache.update(k, v, layer), made, scaling=scaling)
            assert out.dtype == dtype and out.shape == (2, tokens, heads, head_dim)
            keys, values = past[layer] = [torch.cat((old, new.float()), 2) for old, new in zip(past[layer], (k, v), strict=True)]
            q, keys, values = (x.double() for x in (q, keys, values))
            keys, values = (x.repeat_interleave(heads // kv_heads, 1) for x in (keys, values))
            scores = (q @ keys.mT * scaling).masked_fill(~visible, -math.inf)
            weights = torch.softmax(scores, -1)
            want = (weights @ values).transpose(1, 2)
            # Scores are off by the rounding of queries and keys, weights by e to twice that, products by two more roundings.
            off = (q.abs() @ keys.abs().mT * scaling).amax(-1, keepdim=True) * (2 * BF16 + BF16**2)
            bound = ((torch.exp(2 * off) * (1 + BF16) ** 2 - 1) * (weights @ values.abs())).transpose(1, 2)
            bound += want.abs() * BF16 + 1e-5
            assert ((out - want).abs() <= bound).all()
            # Another scale, window or token shows.
            assert bound.mean() < 0.5 * values.std()
    assert cache.get_seq_length() == seen


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_gives_the_tokens_of_the_dense_cache(family):
    model, ids = family(), prompt(2, 90)
    cache = SparseCache()
    found = generate(model, ids, cache)
    assert cache.get_seq_length() == 169 and cache.batch_size == 2
    check_greedy(model, found, 90)


def test_tokens_are_equal_where_no_choice_is_close():
    model, ids = trained()
    dense = model.generate(ids, max_new_tokens=100, do_sample=False)
    logit, tolerance = dense_and_tolerance(model, dense)
    best = logit[:, ids.shape[1] - 1 : -1].topk(2).values
    assert (best[..., 0] - best[..., 1] > 2 * tolerance).all()
    assert torch.equal(generate(model, ids, SparseCache(), new=100), dense)
    # Half of the numbers are enough for it, and those of the right places: it counts on.
    sparse = generate(model, ids, SparseCache(0.5), new=100)
    assert torch.equal(sparse, dense)


def trained():
    """A model that continues a repeated text, and the beginning of one."""
    model = llama(num_hidden_layers=2, initializer_range=0.05)
    model.set_attn_implementation("sparamx")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    pattern = torch.randperm(VOCABULARY - 1)[:17] + 1
    text = pattern.repeat(20)
    model.train()
    for _step in range(60):
        batch = torch.stack([text[i : i + 200] for i in torch.randint(0, 17, (4,)).tolist()])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), torch.stack([text[3:153], text[9:159]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_padding_changes_nothing(family, sides):
    model, lengths = family(), [5, 70, 33, 1]
    ids, attention_mask = torch.zeros(4, 70, dtype=torch.long), torch.zeros(4, 70, dtype=torch.long)
    for i, length in enumerate(lengths):
        first = {"left": 70 - length, "right": 0, "both": (70 - length) // 2}[sides]
        ids[i, first : first + length] = prompt(1, length)
        attention_mask[i, first : first + length] = 1
    cache = SparseCache()
    options = {"attention_mask": attention_mask, "position_ids": positions(attention_mask)}
    found = logits(model, ids, cache=cache, **options)
    pages = sum(math.ceil(length / 64) for length in lengths)
    kv_heads = getattr(model.config, "num_key_value_heads", 4)
    assert cache.nbytes == pages * 2 * kv_heads * PAGE_BYTES
    # Once more with tokens after it, in which some have padding again.
    more, more_mask = prompt(4, 3), torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
    ids, attention_mask = torch.cat((ids, more), 1), torch.cat((attention_mask, more_mask), 1)
    options = {"attention_mask": attention_mask, "position_ids": positions(attention_mask)[:, 70:]}
    found = torch.cat((found, logits(model, more, cache=cache, **options)), 1)
    assert cache.get_seq_length() == 73
    for i, real in enumerate(attention_mask.bool()):
        want, tolerance = dense_and_tolerance(model, ids[i : i + 1, real])
        assert (found[i, real] - want[0]).abs().max() <= tolerance + 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_with_prompts_of_different_lengths(family):
    model, lengths = family(), [5, 90, 64, 1]
    ids, attention_mask = torch.zeros(4, 90, dtype=torch.long), torch.zeros(4, 90, dtype=torch.long)
    for i, length in enumerate(lengths):
        ids[i, 90 - length :] = prompt(1, length)
        attention_mask[i, 90 - length :] = 1
    found = generate(model, ids, SparseCache(), attention_mask=attention_mask)
    attention_mask = torch.cat((attention_mask, torch.ones(4, 80, dtype=torch.long)), 1)
    check_greedy(model, found, 90, attention_mask=attention_mask, position_ids=positions(attention_mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(dtype):
    model, ids = llama(), prompt(1, 100)
    want, tolerance = dense_and_tolerance(model, ids)
    model = model.to(dtype)
    off = (logits(model, ids, "sdpa") - want).abs().max()
    found = logits(model, ids, cache=SparseCache())
    assert found.dtype == dtype
    assert (found - want).abs().max() <= 2 * off + tolerance
    assert generate(model, ids, SparseCache(0.5), new=70).shape == (1, 170)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_the_numbers_take_less_memory_and_give_similar_logits(family):
    model, ids = family(), prompt(2, 400)
    dense = logits(model, ids, "sdpa")[:, -1]
    errors, sizes = [], []
    for options in [{}, {"sparsity": 0.3}, {"sparsity": 0.9}]:
        cache = SparseCache(**options)
        # The last token sees everything packed that ever will be.
        logits(model, ids[:, :-1], cache=cache)
        found = logits(model, ids[:, -1:], cache=cache)[:, -1]
        errors.append(((found - dense).norm() / dense.norm()).item())
        sizes.append(cache.nbytes)
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)
    assert errors[0] < 0.05 and errors[1] < 0.5
    half = SparseCache(0.5)
    generate(model, ids, half, new=100)
    dense = SparseCache()
    generate(model, ids, dense, new=100)
    assert half.nbytes < 0.8 * dense.nbytes


@pytest.mark.parametrize("rule", ["query", "magnitude", "token"])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_options_are_used(rule, dtype):
    model, ids = llama(head_dim=64), prompt(1, 300)
    want, _ = dense_and_tolerance(model, ids)

    def run(**options):
        cache = SparseCache(dtype=dtype, rule=rule, **options)
        logits(model, ids[:, :-1], cache=cache)
        return logits(model, ids[:, -1:], cache=cache)[0, -1], cache.nbytes

    found, size = run(sparsity=0.5)
    keys, size_keys = run(key_sparsity=0.5)
    values, _ = run(value_sparsity=0.5)
    kept, size_kept = run(sparsity=0.5, window=1000)
    sinks, size_sinks = run(sparsity=0.5, sinks=64)
    assert size < min(size_keys, size_sinks, size_kept)
    # Keys and values of 5 pages, and for one rule the magnitudes of queries.
    assert size_kept == 5 * 2 * 2 * (64 * 64 * 2) * (3 if rule == "query" else 2)
    off = [(x - want[0, -1]).abs().max() for x in (kept, keys, values, sinks, found)]
    assert off[0] < min(off[1:])
    assert len({x.sum().item() for x in (kept, keys, values, sinks, found)}) == 5


def attend(cache, tokens, heads=8, head_dim=64):
    module = SimpleNamespace(config=transformers.LlamaConfig(num_hidden_layers=1), is_causal=True)
    q, k, v = torch.randn(3, 1, heads, tokens, head_dim)
    return attention(module, q, *cache.update(k, v, 0), None)[0]


@pytest.mark.parametrize("head_dim", [1, 5, 80, 256])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_heads_of_any_size_and_passes_without_tokens(head_dim, dtype):
    cache = SparseCache(0.3, dtype=dtype)
    for tokens in (0, 200, 0, 1):
        out = attend(cache, tokens, 2, head_dim)
        assert out.shape == (1, tokens, 2, head_dim) and out.isfinite().all()
    assert cache.get_seq_length() == 201


@pytest.mark.parametrize("rule", ["query", "magnitude", "token"])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_numbers_that_are_not_finite_stay_in_their_sequence(rule, dtype, bad):
    module = SimpleNamespace(config=transformers.LlamaConfig(num_hidden_layers=1))
    q, k, v = torch.randn(3, 2, 2, 300, 16)
    results = []
    for number in (bad, 1.0):
        for states in (q, k, v):
            states[1, :, 5] = number
        cache = SparseCache(0.5, dtype=dtype, rule=rule)
        parts = [x.split([200, 100], 2) for x in (q, k, v)]
        results.append([attention(module, q, *cache.update(k, v, 0), None)[0][0] for q, k, v in zip(*parts, strict=True)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_the_number_of_threads_does_not_matter():
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        cache = SparseCache(0.5)
        results.append(torch.cat([attend(cache, tokens) for tokens in (700, 1, 1)], 1))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_caches_work_side_by_side():
    torch.set_num_threads(2)
    states = [torch.randn(4, 2, 300, 16) for _ in range(6)]

    def run(states):
        cache, module = SparseCache(0.5), SimpleNamespace(config=transformers.LlamaConfig(num_hidden_layers=1))
        parts = [attention(module, x, *cache.update(x, x, 0), None)[0] for x in states.split([150, 1, 149], 2)]
        return torch.cat(parts, 1)

    want = [run(x) for x in states]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(*pair) for pair in zip(pool.map(run, states), want, strict=True))


# What it remembers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_prompt_may_come_in_pieces(family, sparsity):
    model, ids = family(), prompt(2, 200)
    _, tolerance = dense_and_tolerance(model, ids)
    # The pages that a token sees packed do not depend on the pieces.
    whole = logits(model, ids, cache=SparseCache(sparsity, rule="magnitude"))
    cache = SparseCache(sparsity, rule="magnitude")
    pieces = [logits(model, piece, cache=cache) for piece in ids.split([70, 1, 60, 64, 5], 1)]
    assert (torch.cat(pieces, 1) - whole).abs().max() <= tolerance


def test_a_cache_goes_on_in_a_second_call():
    model, ids = llama(), prompt(2, 70)
    cache = SparseCache()
    first = generate(model, ids, cache, new=30)
    assert cache.get_seq_length() == 99
    asked = torch.cat((first, prompt(2, 20)), 1)
    # Transformers would make it of pad tokens, which the model may have chosen.
    second = generate(model, asked, cache, new=30, attention_mask=torch.ones_like(asked))
    assert cache.get_seq_length() == 149
    assert torch.equal(second[:, :120], asked)
    check_greedy(model, second, 120)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes, cache.batch_size) == (0, 0, -1)
    check_greedy(model, generate(model, prompt(1, 10), cache), 10)


def test_copies_share_pages_until_they_differ():
    model, ids = llama(), prompt(1, 130)
    cache = SparseCache()
    logits(model, ids[:, :100], cache=cache)
    size = cache.nbytes
    copies = [copy.deepcopy(cache), copy.copy(cache)]
    assert cache.nbytes == copies[0].nbytes == size
    texts = [torch.cat((ids[:, :100], prompt(1, 30)), 1) for _ in copies]
    for text, other in zip([*texts, ids], [*copies, cache], strict=True):
        want, tolerance = dense_and_tolerance(model, text)
        assert (logits(model, text[:, 100:], cache=other) - want[:, 100:]).abs().max() <= tolerance
        assert other.get_seq_length() == 130
    # Each has pages of its own but for the first.
    assert cache.nbytes == size // 2 * (1 + 3 + 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search(family):
    model, ids = family(), prompt(2, 90)
    found = model.generate(
        ids,
        **{CACHE: SparseCache()},
        max_new_tokens=70,
        num_beams=3,
        num_return_sequences=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    # The score of a beam is the mean log probability of its tokens, so a cache that mixes beams up shows.
    dense, tolerance = dense_and_tolerance(model, found.sequences)
    chances = dense.log_softmax(-1)[:, 89:-1].gather(2, found.sequences[:, 90:, None])[..., 0]
    assert ((found.sequences_scores - chances.mean(1)).abs() <= 2 * tolerance).all()
    assert len({tuple(row) for row in found.sequences.tolist()}) > 1


def test_sequences_are_chosen_and_repeated():
    model, ids = llama(), prompt(3, 70)
    attention_mask = torch.ones(3, 70, dtype=torch.long)
    attention_mask[1, :9], attention_mask[2, :30] = 0, 0
    cache = SparseCache()
    logits(model, ids, cache=cache, attention_mask=attention_mask, position_ids=positions(attention_mask))
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    more, order = prompt(4, 5), [2, 2, 0, 0]
    ids = torch.cat((ids[order], more), 1)
    attention_mask = torch.cat((attention_mask[order], torch.ones(4, 5, dtype=torch.long)), 1)
    options = {"attention_mask": attention_mask, "position_ids": positions(attention_mask)}
    want, tolerance = dense_and_tolerance(model, ids, **options)
    options["position_ids"] = options["position_ids"][:, 70:]
    assert (logits(model, more, cache=cache, **options) - want[:, 70:]).abs().max() <= tolerance
    cache.batch_select_indices(torch.tensor([True, False, False, True]))
    assert cache.batch_size == 2
    with pytest.raises(IndexError):
        cache.reorder_cache(torch.tensor([2]))


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_assisted_generation_takes_tokens_back(sparsity):
    model, ids = trained()
    ids = ids[:1]
    # Wrong guesses: the text does not go on as it did.
    ids[:, 100:] = prompt(1, 50)
    want = generate(model, ids, SparseCache(sparsity), new=70)
    found = generate(model, ids, SparseCache(sparsity), new=70, prompt_lookup_num_tokens=6)
    logit, tolerance = dense_and_tolerance(model, want)
    best = logit[:, 149:-1].topk(2).values
    sure = (best[..., 0] - best[..., 1] > 2 * tolerance)[0].int().cumprod(0).sum()
    assert sure > 30
    assert torch.equal(found[:, : 150 + sure], want[:, : 150 + sure])


def test_crop():
    model, ids = llama(), prompt(2, 200)
    cache = SparseCache()
    want = logits(model, ids, cache=cache)
    _, tolerance = dense_and_tolerance(model, ids)
    for length, remove in [(197, -3), (150, 150), (64, -86), (64, 0), (64, 70), (10, -54), (0, -100)]:
        cache.crop(remove)
        assert cache.get_seq_length() == length
        again = logits(model, ids[:, length:], cache=copy.deepcopy(cache))
        assert (again - want[:, length:]).abs().max() <= tolerance
    assert cache.nbytes == 0


def test_crop_of_padded_sequences():
    model, ids = llama(), prompt(2, 100)
    attention_mask = torch.ones(2, 100, dtype=torch.long)
    attention_mask[0, :40] = 0
    attention_mask[1, 90:95] = 0
    options = {"attention_mask": attention_mask, "position_ids": positions(attention_mask)}
    cache = SparseCache()
    want = logits(model, ids, cache=cache, **options)
    cache.crop(-8)
    options["position_ids"] = options["position_ids"][:, 92:]
    again = logits(model, ids[:, 92:], cache=cache, **options)
    real = attention_mask[:, 92:].bool()
    assert (again - want[:, 92:])[real].abs().max() < 1e-4


def test_crop_of_packed_pages_is_exact_or_refused():
    model, ids = llama(), prompt(1, 300)
    cache = SparseCache(0.5)
    want = [logits(model, piece, cache=cache) for piece in ids.split(1, 1)]
    size = cache.nbytes
    with pytest.raises(ValueError, match="200 tokens cannot be taken back.*16"):
        cache.crop(-200)
    assert (cache.get_seq_length(), cache.nbytes) == (300, size)
    cache.crop(-16)
    for i, piece in enumerate(ids[:, 284:].split(1, 1)):
        assert (logits(model, piece, cache=cache) - want[284 + i]).abs().max() < 1e-4
    cache.crop(-300)
    assert cache.get_seq_length() == 0


# What it refuses


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 1},
        {"sparsity": -0.1},
        {"sparsity": math.nan},
        {"sparsity": None},
        {"sparsity": "0.5"},
        {"key_sparsity": 1.0},
        {"value_sparsity": 2},
        {"dtype": "int4"},
        {"dtype": torch.bfloat16},
        {"rule": "wanda"},
        {"window": -1},
        {"window": 1.5},
        {"sinks": -1},
        {"memory_bytes": 0},
        {"memory_bytes": True},
    ],
)
def test_bad_options_are_named(options):
    ((option, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{option}={value!r}: ".replace("(", r"\(")):
        SparseCache(**options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_other_attention_implementations_say_what_to_do(family, implementation):
    model = family()
    model.set_attn_implementation(implementation)
    cache = SparseCache()
    with pytest.raises(RuntimeError, match=r"model.set_attn_implementation\(.sparamx.\)"):
        generate(model, prompt(1, 5), cache)
    model.set_attn_implementation("sparamx")
    check_greedy(model, generate(model, prompt(1, 5), cache), 5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [True, False])
def test_without_the_cache_it_is_sdpa(family, padded):
    model, ids = family(), prompt(2, 90)
    attention_mask = torch.ones(2, 90, dtype=torch.long)
    attention_mask[1, :50] = 1 - int(padded)
    options = {"attention_mask": attention_mask, "position_ids": positions(attention_mask)}
    real = attention_mask.bool()
    assert torch.equal(logits(model, ids, **options)[real], logits(model, ids, "sdpa", **options)[real])
    results = []
    for implementation in ("sparamx", "sdpa"):
        cache = transformers.DynamicCache(config=model.config)
        for first, end in itertools.pairwise([0, 60, 61, 90]):
            part = {"attention_mask": attention_mask[:, :end], "position_ids": options["position_ids"][:, first:end]}
            last = logits(model, ids[:, first:end], implementation, cache, **part)
        results.append(last)
    assert torch.equal(*results)
    model.train()
    model(ids, labels=ids, **options).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_masks_that_do_not_fit_are_refused():
    model, ids = llama(), prompt(2, 10)
    padded = torch.ones(2, 10, dtype=torch.long)
    padded[0, :3] = 0
    cache = SparseCache()
    logits(model, ids, cache=cache, attention_mask=padded)
    more, ones = prompt(2, 1), torch.ones(2, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="attention_mask must be given"):
        logits(model, more, cache=cache)
    with pytest.raises(ValueError, match="not what it was"):
        logits(model, more, cache=cache, attention_mask=torch.cat((padded.flip(0), ones), 1))
    with pytest.raises(ValueError, match=r"shape \[2, 12\] and should have \[2, 11\]"):
        logits(model, more, cache=cache, attention_mask=torch.cat((padded, ones, ones), 1))
    with pytest.raises(ValueError, match=r"shape \[2, 1, 1, 11\]"):
        logits(model, more, cache=cache, attention_mask=torch.ones(2, 1, 1, 11, dtype=torch.bool))
    assert cache.get_seq_length() == 10
    # None of it did any harm.
    both = torch.cat((padded, ones), 1)
    want, tolerance = dense_and_tolerance(model, torch.cat((ids, more), 1), attention_mask=both)
    found = logits(model, more, cache=cache, attention_mask=both)
    assert (found - want[:, 10:]).abs().max() <= tolerance


def test_layers_must_agree_on_padding():
    module = SimpleNamespace(config=transformers.LlamaConfig(num_hidden_layers=2), is_causal=True)
    q, k, v = torch.randn(3, 2, 2, 4, 16)
    padding = [[[0, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 1, 1], [0, 1, 1, 1]], [[0, 1, 1, 1], [1, 1, 1, 1]]]
    first, other, same = (mask(2, 4, 4, attention_mask=torch.tensor(rows).bool()) for rows in padding)
    cache = SparseCache()
    attention(module, q, *cache.update(k, v, 0), first)
    for wrong in (other, None):
        with pytest.raises(ValueError, match="layer 1 has other padding"):
            attention(module, q, *cache.update(k, v, 1), wrong)
    out, _ = attention(module, q, *cache.update(k, v, 1), same)
    assert cache.get_seq_length() == 4 and (out[0, 0] == 0).all() and (out[1, 0] != 0).all()


def test_masks_that_a_model_changes_are_those_of_sdpa():
    module = SimpleNamespace(config=transformers.LlamaConfig(num_hidden_layers=1), is_causal=True)
    q, k, v = torch.randn(3, 2, 2, 6, 16)
    padding = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    made, full = mask(2, 6, 6, attention_mask=padding), mask(2, 6, 6, attention_mask=padding, allow_is_causal_skip=False)
    assert full.shape == (2, 1, 6, 6) and type(full) is torch.Tensor
    keys = torch.rand(2, 1, 6, 6) > 0.3
    for change in (lambda m: m & keys, lambda m: m[:, :, :, :6] | keys, lambda m: m.masked_fill(~keys, False), torch.clone):
        got, _ = attention(module, q, k, v, change(made))
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, change(full)).transpose(1, 2)
        torch.testing.assert_close(got, want)
        cache = SparseCache()
        with pytest.raises(ValueError, match=r"the attention mask has shape \[2, 1, 6, 6\]"):
            attention(module, q, *cache.update(k, v, 0), change(made))
    with pytest.raises(ValueError, match=r"llama: .* a mask of shape \[2, 6\]"):
        attention(module, q, k, v, padding)
    # As where a model leaves out queries, and has no mask.
    with pytest.raises(ValueError, match="2 queries for 6 keys without a mask"):
        attention(module, q[:, :, 4:], k, v, None)
    attention(module, q[:, :, 4:], k, v, None, is_causal=False)


def test_models_that_cannot_use_it_say_so():
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4))
    with pytest.raises(RuntimeError, match="in its own way"):
        logits(bloom.eval(), prompt(1, 5), "eager", SparseCache())
    model = llama()
    # As one whose second layer has no attention.
    model.model.layers[1] = model.model.layers[0]
    cache = SparseCache()
    with pytest.raises(RuntimeError, match="layers without keys of their own"):
        logits(model, prompt(1, 5), cache=cache)


def test_attention_that_is_not_causal_is_refused():
    model, ids = llama(), prompt(1, 10)
    model.config.is_causal = False
    with pytest.raises(ValueError, match="is_causal=False"):
        logits(model, ids, cache=SparseCache())
    for option in ("softcap", "s_aux", "position_bias"):
        with pytest.raises(ValueError, match=option):
            logits(llama(), ids, cache=SparseCache(), **{option: 1.0})
    with pytest.raises(ValueError, match="dropout=0.1"):
        logits(llama(attention_dropout=0.1).train(), ids, cache=SparseCache())
    with pytest.raises(RuntimeError, match=r"torch.no_grad\(\)"):
        llama()(ids, **{CACHE: SparseCache()})


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
CHOSEN = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}
MOE = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize("use", ["default cache", "no cache", "SparseCache"])
@pytest.mark.parametrize(
    "family,argument,options",
    [
        ("GptOss", "s_aux", {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 16}),
        ("Gemma2", "softcap", {"num_key_value_heads": 2, "head_dim": 16}),
        ("DeepseekV32", "indices", {**LATENT, **CHOSEN, **MOE, "first_k_dense_replace": 2}),
        ("GlmMoeDsa", "indices", {**LATENT, **CHOSEN, **MOE, "mlp_layer_types": ["dense", "dense"], "indexer_types": ["full"] * 2}),
    ],
)
def test_what_attention_lacks_is_refused_by_model_and_argument(family, argument, options, use):
    config = getattr(transformers, f"{family}Config", None)
    if config is None:
        pytest.skip(f"Transformers {transformers.__version__} has no {family}")
    config = config(**SMALL, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ids = prompt(1, 9)
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
        model.set_attn_implementation("sparamx")
        cache = SparseCache() if use == "SparseCache" else None
        with pytest.raises((ValueError, RuntimeError)) as error:
            model(ids, **{CACHE: cache}, use_cache=use != "no cache")
    message = str(error.value)
    assert (config.model_type in message and argument in message) or (use == "SparseCache" and "SparseCache" in message)


def test_tensors_that_attention_does_not_know_are_refused():
    model, ids = llama(), prompt(1, 9)
    for cache in (None, SparseCache()):
        with pytest.raises(ValueError, match="llama: .* some_bias"):
            logits(model, ids, cache=cache, some_bias=torch.zeros(4))
        with pytest.raises(ValueError, match="softcap"):
            logits(model, ids, cache=cache, softcap=30.0)
    # Of what is made before, only the tensors that it is made of come along.
    want = logits(model, ids)
    at = torch.arange(9)[None]
    got = logits(model, ids, position_ids=at, num_items_in_batch=torch.tensor(9), sliding_window=None, some_option=True)
    assert torch.equal(got, want)


def test_attention_weights_are_not_given_and_that_is_said():
    with pytest.warns(UserWarning, match="eager"):
        logits(llama(), prompt(1, 9), output_attentions=True)


def test_another_batch_or_model_is_refused():
    model, cache = llama(), SparseCache()
    logits(model, prompt(2, 10), cache=cache)
    with pytest.raises(ValueError, match="holds 2 sequences and the model got 3"):
        logits(model, prompt(3, 1), cache=cache)
    with pytest.raises(ValueError, match="2 layers of 4 heads, 2 kv heads and head size 16; layer 0 has 4, 1 and 16"):
        logits(qwen2(), prompt(2, 1), cache=cache)
    with pytest.raises(ValueError, match="layer 2 has"):
        logits(llama(num_hidden_layers=3), prompt(2, 1), cache=cache)


def test_tensors_that_pages_do_not_hold_are_refused():
    x = torch.zeros(1, 2, 3, 16)
    for key, value, error, match in [
        (x.double(), x, TypeError, "keys are float64"),
        (x, x.double(), TypeError, "values are float64"),
        (x.to("meta"), x, ValueError, "keys are on meta"),
        (x, x[..., :8], ValueError, r"values \[1, 2, 3, 8\]"),
        (x[0], x[0], ValueError, r"keys have shape \[2, 3, 16\]"),
    ]:
        with pytest.raises(error, match=match):
            SparseCache().update(key, value, 0)


def test_a_pass_that_was_cut_short_is_noticed():
    model, ids = llama(), prompt(2, 100)
    cache = SparseCache()
    logits(model, ids[:, :90], cache=cache)

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        logits(model, ids[:, 90:], cache=cache)
    hook.remove()
    with pytest.raises(RuntimeError, match=r"layer 0 comes again before all 2 layers.*crop\(0\)"):
        logits(model, ids[:, 90:], cache=cache)
    cache.crop(0)
    want, tolerance = dense_and_tolerance(model, ids)
    assert (logits(model, ids[:, 90:], cache=cache) - want[:, 90:]).abs().max() <= tolerance


def test_memory_is_limited():
    model, ids = llama(), prompt(2, 100)
    # Of both sequences two pages, in two layers of two kv heads.
    cache = SparseCache(memory_bytes=2 * 2 * 2 * 2 * PAGE_BYTES)
    logits(model, ids, cache=cache)
    with pytest.raises(MemoryError, match="of its 98304 bytes 0 are left"):
        logits(model, prompt(2, 29), cache=cache)
    more = prompt(2, 28)
    want, tolerance = dense_and_tolerance(model, torch.cat((ids, more), 1))
    assert (logits(model, more, cache=cache) - want[:, 100:]).abs().max() <= tolerance
    # Too much at first, then less; and another batch when all is gone.
    cache = SparseCache(memory_bytes=2 * 2 * 2 * 2 * PAGE_BYTES)
    with pytest.raises(MemoryError, match="choose a smaller context"):
        logits(model, prompt(3, 100), cache=cache)
    logits(model, ids, cache=cache)
    cache.crop(-100)
    want, tolerance = dense_and_tolerance(model, ids[:1])
    assert (logits(model, ids[:1], cache=cache) - want).abs().max() <= tolerance
    with pytest.raises(ValueError, match="memory of the KV cache is 100"):
        logits(model, ids, cache=SparseCache(memory_bytes=100))


def test_transformers_is_imported_when_it_is_needed():
    code = """
import sys
import sparamx.torch
assert "transformers" not in sys.modules and "SparseCache" in dir(sparamx.torch)
sys.modules["transformers"] = None
try:
    sparamx.torch.SparseCache
except ImportError as error:
    assert "pip install" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_says_what_it_is():
    model, cache = llama(), SparseCache(0.5, dtype="int8")
    assert len(cache) == 0 and not cache.is_initialized and "0 x 0 tokens" in repr(cache)
    logits(model, prompt(3, 7), cache=cache)
    assert len(cache) == 2 and cache.is_initialized and not cache.is_compileable
    assert "key_sparsity=0.5" in repr(cache) and "3 x 7 tokens" in repr(cache)
