"""Many clients at a time, and whether the server takes it.

    load.py thousand [--streams 1000]     a tenth of the clients read slowly, a tenth are gone at random: the others get the right text
    load.py mixed [--seconds 20]          requests of all kinds, good and bad, for that long; --seconds 3600 is an hour
    load.py between [--model MODEL]       time between tokens while long prompts arrive
    load.py damaged [--requests 2000]     requests with random damage over a socket

Each prints one JSON object, and fails if the server does not do what it must. $SPARAMX is the program.
"""

import argparse
import asyncio
import json
import random
import resource
import statistics
import sys
import time

from client import Habits, Target, ask, send, together
from process import ROOT, sparamx

SHIPPED = ROOT / "models/stories-5m-50"
# A tenth of the memory of the shipped model's process, and what an allocator keeps. The KV cache is not in it: it may fill.
GROWTH_BYTES = 24 << 20
# Files and threads beyond those of the first figure: they do not grow with the load.
SPARE = 8
# Waves of clients before the one that is measured.
WARM_UP = 2
# A guard against hangs only.
SETTLE_SECONDS = 120
WORDS = "once upon a time there was little dog cat girl boy named lily tom who liked to play in the big park with red ball".split()


def prompts(count, seed=1):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) for _ in range(count)]


def body(prompt, tokens, **more):
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True, **more}


async def settle(server):
    """Waits until nothing runs."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        metrics = server.metrics()
        busy = sum(v for k, v in metrics.items() if k.split("{")[0] in ("vllm:num_requests_running", "vllm:num_requests_waiting"))
        if busy == 0:
            # Connections end a moment after their requests.
            await asyncio.sleep(0.5)
            return server.metrics()
        if time.monotonic() > end:
            raise AssertionError(f"{busy} requests are left after {SETTLE_SECONDS} s")
        await asyncio.sleep(0.1)


async def down_to(count, most, what):
    """Waits until there are no more than so many, and says how many there are.

    A connection lingers for two seconds after the client is gone, and a thread for work off the network ends when it is not needed.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while (now := count()) > most:
        assert time.monotonic() < end, f"{now} {what}, {most} at most were expected"
        await asyncio.sleep(0.1)
    return now


def kv(metrics, *states):
    """Bytes of the KV cache in these states."""
    return sum(v for k, v in metrics.items() for state in states if k.startswith("sparamx:kv_bytes") and f'state="{state}"' in k)


def held(metrics):
    """Bytes of the KV cache that requests hold: what is cached of old ones may stay."""
    return kv(metrics, "in_use")


def memory(server, metrics):
    """Resident bytes, and those of them that are not the KV cache: what it keeps for later requests may grow up to its budget."""
    resident = server.resident_bytes()
    return resident, resident - int(kv(metrics, "in_use", "cached", "free"))


async def thousand(args):
    texts = prompts(50)
    with sparamx(SHIPPED, "--max-requests", 2 * args.streams) as server:
        target = Target(server.port)
        alone = []
        for prompt in texts:
            answer = await ask(target, "POST", "/v1/completions", body(prompt, args.tokens))
            assert answer.status == 200 and answer.ended, answer.body[:300]
            alone.append(answer.text())
        draw = random.Random(2)

        async def one(index):
            kind = draw.choices(["plain", "slow", "gone"], [8, 1, 1])[0]
            habits = {
                "plain": Habits(),
                "slow": Habits(pause=0.05),
                "gone": Habits(leave_after=draw.randint(0, 8000)),
            }[kind]
            answer = await ask(target, "POST", "/v1/completions", body(texts[index % len(texts)], args.tokens), habits)
            if answer is None:
                assert kind == "gone", "no answer"
                return "gone"
            assert answer.status == 200, answer.body[:300]
            assert answer.ended, answer.body[-300:]
            assert answer.text() == alone[index % len(texts)], f"request {index} ({kind}) has another text than alone"
            return kind

        async def wave():
            start = time.monotonic()
            kinds = await together(one(index) for index in range(args.streams))
            seconds = time.monotonic() - start
            metrics = await settle(server)
            assert held(metrics) == 0, f"{held(metrics)} bytes of the KV cache are lost"
            return kinds, seconds, metrics, memory(server, metrics)

        await settle(server)
        # The first connections are closed by now, too.
        await asyncio.sleep(3)
        files = server.files()
        # Memory that the first waves take is what so many clients need; one more must not take more.
        for _ in range(WARM_UP):
            *_, before = await wave()
        await down_to(server.files, files, "files are open")
        threads = server.threads()
        kinds, seconds, metrics, after = await wave()
        assert after[1] - before[1] <= GROWTH_BYTES, f"resident bytes, and without the KV cache: {before} to {after}"
        files = await down_to(server.files, files, "files are open")
        # Threads for work off the network come when they are needed, and end when they are not.
        threads = await down_to(server.threads, threads + SPARE, "threads")
        return {
            "streams": args.streams,
            "tokens": args.tokens,
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "seconds": round(seconds, 2),
            "resident_bytes": [before[0], after[0]],
            "without_kv_bytes": [before[1], after[1]],
            "files": files,
            "threads": threads,
            "kv_bytes_held": held(metrics),
        }


def some_request(draw, texts):
    """A request of any kind, and the statuses that it may get."""
    prompt = draw.choice(texts)
    chat = [{"role": "user", "content": prompt}]
    tokens = draw.randint(1, 60)
    ball = {"type": "object", "properties": {"ball": {"enum": ["red", "blue"]}}, "required": ["ball"]}
    tool = {"type": "function", "function": {"name": "play", "parameters": ball}}
    schema = {"type": "json_schema", "json_schema": {"name": "dog", "schema": ball}}
    chats, texts_, stream = "/v1/chat/completions", "/v1/completions", draw.random() < 0.5
    return draw.choice(
        [
            ("POST", texts_, body(prompt, tokens), {200}),
            ("POST", texts_, {"prompt": prompt, "max_tokens": tokens, "n": draw.randint(1, 4), "temperature": 1.0}, {200}),
            ("POST", texts_, {"prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}, {200}),
            ("POST", chats, {"messages": chat, "max_tokens": tokens, "stream": stream, "logprobs": True, "top_logprobs": 2}, {200}),
            ("POST", chats, {"messages": chat, "max_tokens": 60, "stream": stream, "response_format": schema}, {200}),
            ("POST", chats, {"messages": chat, "max_tokens": 60, "stream": stream, "tools": [tool], "tool_choice": "required"}, {200}),
            ("POST", "/v1/messages", {"messages": chat, "max_tokens": tokens, "stream": stream, "model": "stories"}, {200}),
            ("POST", "/v1/responses", {"input": prompt, "max_output_tokens": tokens, "stream": stream, "model": "stories"}, {200}),
            ("POST", "/tokenize", {"prompt": prompt}, {200}),
            ("GET", "/v1/models", None, {200}),
            ("GET", "/metrics", None, {200}),
            ("POST", texts_, {"prompt": prompt, "max_tokens": -1}, {400}),
            ("POST", chats, {"messages": chat, "model": "none"}, {404}),
            ("GET", "/nothing", None, {404}),
        ]
    )


async def mixed(args):
    texts = prompts(200)
    draw = random.Random(args.seed)
    counts = {}
    # A KV cache that the load fills early: it may keep prefixes up to its budget.
    with sparamx(SHIPPED, "--served-model-name", "stories", "--kv-memory", "16M") as server:
        target = Target(server.port)

        async def client(end):
            while time.monotonic() < end:
                method, path, content, allowed = some_request(draw, texts)
                habits = draw.choices([Habits(), Habits(pause=0.01), Habits(leave_after=draw.randint(0, 4000))], [8, 1, 1])[0]
                answer = await ask(target, method, path, content, habits)
                status = answer.status if answer else "gone"
                assert answer is None or status in allowed, (status, content, answer.body[:300])
                counts[status] = counts.get(status, 0) + 1

        async def phase(seconds):
            end = time.monotonic() + seconds
            await together(client(end) for _ in range(args.clients))
            metrics = await settle(server)
            assert held(metrics) == 0, f"{held(metrics)} bytes of the KV cache are lost"
            return *memory(server, metrics), server.files(), server.threads()

        # What fills once (compiled grammars, the allocator) has filled before the first figure.
        start = await phase(args.seconds / 4)
        samples = [start]
        for _ in range(3):
            samples.append(await phase(args.seconds / 4))
        grown = samples[-1][1] - start[1]
        assert grown <= GROWTH_BYTES, f"resident bytes, and without the KV cache: {[sample[:2] for sample in samples]}"
        await down_to(server.files, start[2] + SPARE, "files are open")
        # A thread for work off the network starts when it is needed, and ends when it is not.
        await down_to(server.threads, start[3] + SPARE, "threads")
        return {"seconds": args.seconds, "requests": {str(k): v for k, v in sorted(counts.items(), key=str)}, "samples": samples}


def gaps(answer):
    """Seconds between the tokens of a stream: a read that has several counts for each."""
    events, last, seen, out = answer.body.count(b"data: "), None, 0, []
    per_event = len(answer.body) / max(1, events)
    for seconds, size in answer.reads:
        tokens = max(1, round((size - seen) / per_event))
        if last is not None:
            out += [(seconds - last) / tokens] * tokens
        last, seen = seconds, size
    return out


async def between(args):
    """Streams go on while prompts arrive one after the other."""
    draw = random.Random(3)
    with sparamx(args.model, "--no-speculation") as server:
        target = Target(server.port)
        models = (await ask(target, "GET", "/v1/models")).json()["data"][0]
        context = models["max_model_len"]
        length, tokens = min(512, context - 16), min(args.tokens, context - 16)
        quiet = await tails(target, draw, args.clients, tokens, None)
        arriving = await tails(target, draw, args.clients, tokens, length)
    result = {"model": str(args.model), "streams": args.clients, "prompt_tokens": length, "quiet": quiet, "arriving": arriving}
    if args.limit:
        assert arriving["ratio"] <= args.limit, json.dumps(result)
    return result


async def tails(target, draw, clients, tokens, length):
    """Times between the tokens of streams, while prompts of a length arrive, or none do."""
    done = asyncio.Event()

    def ids(count):
        return [draw.randrange(300, 4000) for _ in range(count)]

    async def arrive():
        count = 0
        while length and not done.is_set():
            answer = await ask(target, "POST", "/v1/completions", {"prompt": ids(length), "max_tokens": 1})
            assert answer.status == 200, answer.body[:300]
            count += 1
        return count

    arrivals = asyncio.create_task(arrive())
    answers = await together(ask(target, "POST", "/v1/completions", body(ids(8), tokens)) for _ in range(clients))
    done.set()
    count = await arrivals
    assert all(answer.status == 200 and answer.ended for answer in answers)
    # The first gaps hold the prompts of the streams themselves.
    found = sorted(gap for answer in answers for gap in gaps(answer)[8:])
    median, p99 = statistics.median(found), found[int(len(found) * 0.99)]
    return {"median_ms": round(1e3 * median, 3), "p99_ms": round(1e3 * p99, 3), "ratio": round(p99 / median, 2), "prompts": count}


def damage(draw, request):
    """A request with some bytes changed, left out, doubled or cut."""
    data = bytearray(request)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data))
        kind = draw.randrange(6)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + draw.randint(1, 20)]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randint(1, 20)]
        elif kind == 3:
            data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
        elif kind == 4:
            data[at:at] = draw.choice([b"\r\n", b"[" * 100, b'"', b"\\u0000", b"1e999", b"null", b"-9999999999999999999999"])
        else:
            data = data[: max(1, at)]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


async def damaged(args):
    texts = prompts(50)
    draw = random.Random(args.seed)
    counts = {}
    with sparamx(SHIPPED, "--served-model-name", "stories") as server:
        target = Target(server.port)

        async def one():
            method, path, content, _ = some_request(draw, texts)
            request = damage(draw, target.request(method, path, content))
            try:
                # A request that is cut waits for its rest, as it may: the client ends it.
                answer = await asyncio.wait_for(send(target, request), 3)
                status = answer.status if answer else "closed"
            # Before Python 3.11 these are two.
            except (asyncio.TimeoutError, TimeoutError):
                status = "waits"
            except ConnectionError:
                status = "closed"
            assert status in ("closed", "waits") or 200 <= status < 500, (status, request)
            counts[status] = counts.get(status, 0) + 1

        left = args.requests
        while left > 0:
            await together(one() for _ in range(min(left, 50)))
            left -= 50
        await settle(server)
        answer = await ask(target, "POST", "/v1/completions", body(texts[0], 8))
        assert answer.status == 200 and answer.ended
        assert server.process.poll() is None
    return {"requests": args.requests, "answers": {str(k): v for k, v in sorted(counts.items(), key=str)}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["thousand", "mixed", "between", "damaged"])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=None)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", default=str(SHIPPED))
    parser.add_argument("--limit", type=float, help="fail if the 99th percentile is more times the median")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.tokens = args.tokens or (64 if args.scenario == "thousand" else 200)
    args.clients = args.clients or (8 if args.scenario == "between" else 16)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * args.streams)), hard))
    result = asyncio.run(globals()[args.scenario](args))
    json.dump({"scenario": args.scenario, **result}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
