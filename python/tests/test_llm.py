"""Text from the models that ship, without PyTorch."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from sparamx import LLM, SamplingParams

MODELS = pathlib.Path(__file__).parents[2] / "models"
MODEL = MODELS / "stories-5m-50"
PROMPTS = ["Once upon a time", "The dog was", "Lily and her mother went to the park. " * 12]


@pytest.fixture(scope="module")
def llm():
    return LLM(MODEL, threads=2)


def greedy(**options):
    return SamplingParams(temperature=0, **{"max_tokens": 20, **options})


def test_a_text_does_not_depend_on_those_beside_it(llm):
    together = llm.generate(PROMPTS, greedy())
    alone = [llm.generate(prompt, greedy())[0] for prompt in PROMPTS]
    for a, b, prompt in zip(together, alone, PROMPTS):
        assert a.prompt == b.prompt == prompt
        assert a.outputs == b.outputs
        assert a.outputs[0].finish_reason == "length" and len(a.outputs[0].token_ids) == 20
        assert a.prompt_token_ids == llm.encode(prompt)
        ids = llm.generate(a.prompt_token_ids, greedy())[0]
        assert ids.prompt is None and ids.outputs == a.outputs
        whole = llm.decode(a.prompt_token_ids + a.outputs[0].token_ids)
        assert whole == llm.decode(a.prompt_token_ids) + a.outputs[0].text
    # The long one has a whole page from before.
    assert alone[2].num_cached_tokens >= 64 and alone[0].num_cached_tokens == 0


def test_the_command_line_writes_the_same(llm):
    # What it said when this was written; the model ships with the repository.
    text = llm.generate("Once upon a time", greedy(max_tokens=8))[0].outputs[0].text
    assert text.startswith(", there was a little"), text


def test_seeds_and_several_texts(llm):
    params = SamplingParams(temperature=1.0, seed=7, n=3, max_tokens=12)
    first, second = (llm.generate("Once upon a time", params)[0] for _ in range(2))
    assert first.outputs == second.outputs
    texts = [output.text for output in first.outputs]
    assert len(set(texts)) == 3 and [output.index for output in first.outputs] == [0, 1, 2]
    one = llm.generate("Once upon a time", SamplingParams(temperature=1.0, seed=8, max_tokens=12))[0]
    assert one.outputs[0].text == texts[1]
    free = {llm.generate("Once", SamplingParams(temperature=2.0, max_tokens=12))[0].outputs[0].text for _ in range(4)}
    assert len(free) > 1


def test_what_ends_a_text(llm):
    whole = llm.generate("Once upon a time", greedy())[0].outputs[0]
    at = whole.text.index("little")
    stopped = llm.generate("Once upon a time", greedy(stop="little"))[0].outputs[0]
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == (whole.text[:at], "stop", "little")
    included = llm.generate("Once upon a time", greedy(stop=["xyz", "little"], include_stop_str_in_output=True))[0].outputs[0]
    assert included.text == whole.text[: at + len("little")]
    stop = whole.token_ids[5]
    token = llm.generate("Once upon a time", greedy(stop_token_ids=[stop]))[0].outputs[0]
    assert token.stop_reason == stop and token.token_ids == whole.token_ids[: whole.token_ids.index(stop)]


def test_biases_penalties_and_log_probabilities(llm):
    whole = llm.generate("Once upon a time", greedy(logprobs=2))[0].outputs[0]
    assert [each.token_id for each in whole.logprobs] == whole.token_ids
    assert all(each.logprob == each.top[0][1] <= 0 and len(each.top) == 2 for each in whole.logprobs)
    banned = whole.token_ids[0]
    other = llm.generate("Once upon a time", greedy(logit_bias={banned: -100}))[0].outputs[0]
    assert banned not in other.token_ids and other.logprobs is None
    forced = llm.generate("Once upon a time", greedy(logit_bias={banned: 100}))[0].outputs[0]
    assert forced.token_ids == [banned] * 20
    varied = llm.generate("Once upon a time", greedy(logit_bias={banned: 3}, frequency_penalty=2.0))[0].outputs[0]
    assert len(set(varied.token_ids)) > 1


def test_parameters_of_each_prompt(llm):
    outputs = llm.generate(PROMPTS[:2], [greedy(max_tokens=3), greedy(max_tokens=5)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 5]
    assert llm.generate([], greedy()) == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1, allowed is 0 or more"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3, allowed is -2 to 2"),
        ({"stop": ""}, "stop is an empty string"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"n": 0}, "n is 0"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids is 1000000, allowed is an id below"),
    ],
)
def test_parameters_outside_their_range(llm, params, message):
    with pytest.raises(ValueError, match=message):
        llm.generate("Once", SamplingParams(**params))


def test_prompts_that_do_not_fit(llm):
    with pytest.raises(ValueError, match="context"):
        llm.generate([1] * (llm.max_model_len + 1), greedy())
    with pytest.raises(ValueError, match="2 prompts and 1 sampling_params"):
        llm.generate(PROMPTS[:2], [greedy()])
    # All or none: the engine is as it was.
    assert llm.generate("Once upon a time", greedy(max_tokens=1))[0].outputs[0].finish_reason == "length"


def test_options_of_the_cache_and_the_context():
    llm = LLM(MODEL, threads=1, max_model_len=200, kv_dtype="int8", key_sparsity=0.5, value_sparsity=0.3, speculation=False)
    assert llm.max_model_len == 200
    output = llm.generate(PROMPTS[2], greedy(max_tokens=500, ignore_eos=True))[0].outputs[0]
    assert output.finish_reason == "length" and len(output.token_ids) == 200 - len(llm.encode(PROMPTS[2]))
    with pytest.raises(ValueError, match="no pages are called int3"):
        LLM(MODEL, kv_dtype="int3")
    with pytest.raises((OSError, ValueError)):
        LLM(MODELS / "none-of-this-name")


def test_conversations_go_through_the_template(llm, tmp_path):
    messages = [{"role": "user", "content": "Tell me a story."}]
    with pytest.raises(ValueError, match="no chat template"):
        llm.chat(messages)
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{% if mood %} {{ mood }}{% endif %} Once")
    chat = LLM(MODEL, threads=1, chat_template=template)
    (output,) = chat.chat(messages, greedy(max_tokens=4), chat_template_kwargs={"mood": "Now."})
    assert chat.decode(output.prompt_token_ids).endswith("Tell me a story. Now. Once")
    assert len(chat.chat([messages, messages], greedy(max_tokens=1))) == 2


def test_other_threads_run_meanwhile(llm):
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    llm.generate(PROMPTS * 4, greedy(max_tokens=100, ignore_eos=True))
    done.set()
    thread.join()
    assert len(ticks) > 5
    results = [None, None]

    def call(index):
        results[index] = llm.generate(PROMPTS[index], greedy())

    threads = [threading.Thread(target=call, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result[0].outputs for result in results] == [llm.generate(PROMPTS[index], greedy())[0].outputs for index in range(2)]


def test_progress_is_shown(llm, capsys):
    llm.generate(PROMPTS, greedy(max_tokens=2, n=2), use_tqdm=True)
    assert "6/6" in capsys.readouterr().err


def test_ctrl_c_ends_it():
    program = f"""
import sparamx
llm = sparamx.LLM({os.fspath(MODEL)!r}, threads=1)
print("ready", flush=True)
try:
    while True:
        llm.generate(["Once"] * 50, sparamx.SamplingParams(max_tokens=300, ignore_eos=True))
except KeyboardInterrupt:
    print(len(llm.generate("Once", sparamx.SamplingParams(max_tokens=2, ignore_eos=True))[0].outputs[0].token_ids))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=120)
    assert (child.returncode, out) == (0, "2\n")


def test_a_child_process_is_told(llm):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            llm.generate("Once", greedy())
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert "does not survive a fork" in pipe.read()
    os.waitpid(child, 0)


def test_a_packed_folder_of_ours_and_odd_files(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 10**6}))
    llm = LLM(copy, threads=1)
    assert any("generation_config.json" in warning for warning in llm.warnings)
