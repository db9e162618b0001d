"""The page in a browser: against the server, and against a fake for what a healthy server does not do on demand.

$SPARAMX_CHROMIUM is the browser, if it is none of those that are looked for. With $SPARAMX_SHOTS, a folder, screenshots are left there.
"""

import json
import os
import re
import shutil
import subprocess
import time

import pytest

from conftest import KEY, ROOT, serve
from page.fake import ANSWER, META, PAGE, REASONING, Fake

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

SHOTS = os.environ.get("SPARAMX_SHOTS")
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
WIDE, PHONE = (1280, 800), (390, 844)
# Guards against hangs only.
PATIENCE_MS = 120_000
PROGRAM_SECONDS = 600
# How long the server has to see that a client is gone, before the client tries again.
SEEN_SECONDS = 5
QUESTION = "How do sparse weights make decoding faster on a CPU?"

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


def find_browser():
    """The first browser that starts, or the one that was asked for, whatever it does; else why there is none."""
    asked = os.environ.get("SPARAMX_CHROMIUM")
    if asked:
        return asked, None
    trouble = "there is no Chromium"
    for browser in filter(None, map(shutil.which, NAMES)):
        # Some are a script that says where to get a browser.
        try:
            done = subprocess.run(
                [browser, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=PROGRAM_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            trouble = f"{browser} does not start: {error}"
            continue
        if done.returncode == 0:
            return browser, None
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        trouble = f"{browser} does not start, exit code {done.returncode}: {said[-300:]}"
    return None, trouble


@pytest.fixture(scope="module")
def chromium():
    path, trouble = find_browser()
    if path is None:
        pytest.skip(trouble)
    with playwright.sync_playwright() as driver:
        # The sandbox needs what containers do not give to root.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens pages, and looks at the end whether anything went wrong in them."""
    contexts, pages = [], []

    def visit(url, size=WIDE, colours="light", allowed=(), **options):
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=colours, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(WATCH)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(f"error: {error}"))
        page.on("console", lambda message: note(page, message, allowed))
        page.on("request", lambda request: request.url.startswith((url, "data:")) or page.faults.append(f"elsewhere: {request.url}"))
        pages.append(page)
        page.goto(url)
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield visit
    faults = [fault for page in pages for fault in page.faults + page.evaluate("window.violations")]
    for context in contexts:
        context.close()
    assert not faults, faults


def note(page, message, allowed):
    """Browsers themselves log each answer with an error status."""
    if message.type in ("error", "warning") and not any(f"status of {status}" in message.text for status in allowed):
        page.faults.append(f"console: {message.text}")


def ready(page):
    expect(page.locator(".example").first).to_be_visible()


def ask(page, text):
    page.fill("#message", text)
    page.keyboard.press("Enter")


def answered(page):
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#send")).to_be_visible()


def ignore_ends(page):
    """No text ends before its tokens do."""

    def pass_on(route):
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))

    page.route("**/v1/completions", pass_on)


def answers(page):
    return page.locator(".answer .prose:not(.reasoning .prose)")


# ---- against the server ----


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    options = ("--served-model-name", "org/stories", "--public-page")
    yield from serve(tmp_path_factory, ROOT / "models/stories-5m-50", *options, key=KEY)


def test_a_chat_from_the_key_to_the_end(stories, visit):
    page = visit(stories.url, allowed=[401])
    expect(page.locator("#notice")).to_contain_text("API key")
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    ready(page)
    expect(page.locator("#welcome-note")).to_contain_text("no chat template")
    facts = page.locator("#model").inner_text()
    assert "stories" in facts and "bf16" in facts and "linear_" in facts and "512 tokens" in facts, facts

    ignore_ends(page)
    page.fill("#field-max_tokens", "40")
    page.fill("#field-temperature", "0")
    ask(page, "Once upon a time")
    answered(page)
    first = answers(page).inner_text()
    assert len(first) > 40
    stats = page.locator(".stats").inner_text()
    for part in ("40 tokens", "tokens/s", "first token after", "most tokens reached"):
        assert part in stats, stats
    expect(page.locator("#context-text")).to_have_text(re.compile(r"^\d+ of 512 tokens$"))

    page.click(".actions >> text=Retry")
    answered(page)
    assert answers(page).inner_text() == first
    page.click(".actions >> text=Continue")
    answered(page)
    longer = answers(page).inner_text()
    assert longer.startswith(first[:-1]) and len(longer) > len(first) + 20

    page.hover(".user")
    page.click(".actions >> text=Edit")
    page.fill(".editor textarea", "One day, Tom")
    page.click(".editor button[type=submit]")
    answered(page)
    expect(page.locator(".bubble")).to_have_text("One day, Tom")
    assert answers(page).count() == 1 and answers(page).inner_text() != first

    page.reload()
    expect(page.locator(".bubble")).to_have_text("One day, Tom")
    assert page.input_value("#field-max_tokens") == "40"


def test_stop_ends_the_work_of_the_server(stories, visit):
    page = visit(stories.url, allowed=[401])
    page.fill("#key", KEY)
    page.click("#use-key")
    ready(page)
    before = stories.aborts()
    page.fill("#field-max_tokens", "480")
    page.fill("#field-temperature", "1.5")
    stopped = False
    # The model is fast: a text may have ended in the server before the page stops it.
    for _ in range(20):
        page.click("#new-chat")
        ask(page, "Once upon a time")
        expect(page.locator(".answer").last.locator(".prose").last).not_to_be_empty()
        page.keyboard.press("Escape")
        answered(page)
        stopped |= "stopped" in page.locator(".stats").last.inner_text()
        end = time.monotonic() + SEEN_SECONDS
        while not (seen := stories.aborts() > before) and time.monotonic() < end:
            time.sleep(0.05)
        if seen:
            break
    else:
        pytest.fail("no stop ended work of the server")
    assert stopped
    stories.rest(aborts=before)


def test_a_model_with_a_template_answers(smol, visit):
    page = visit(smol.url)
    ready(page)
    page.fill("#field-temperature", "0")
    page.fill("#field-max_tokens", "48")
    page.fill("#field-system", "You answer in one short sentence.")
    ask(page, "What is the capital of France?")
    answered(page)
    expect(answers(page)).to_contain_text("Paris")
    ask(page, "And of Italy?")
    answered(page)
    expect(answers(page).last).to_contain_text("Rome")


# ---- against the fake ----


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_looks(visit, size, colours):
    with Fake() as fake:
        fake.reasoning = REASONING
        page = visit(fake.url, size, colours, has_touch=size == PHONE, device_scale_factor=2)
        ready(page)
        fits(page, size, "welcome")
        shot(page, f"{colours}-{size[0]}-welcome")
        ask(page, QUESTION)
        answered(page)
        fits(page, size, "chat")
        shot(page, f"{colours}-{size[0]}-end")
        page.locator("#scroller").evaluate("(scroller) => (scroller.scrollTop = 0)")
        shot(page, f"{colours}-{size[0]}-chat")
        page.click(".reasoning summary")
        if size == PHONE:
            page.click("#open-panel")
        fits(page, size, "settings")
        shot(page, f"{colours}-{size[0]}-settings")


def test_a_narrow_phone_has_room_for_all(visit):
    with Fake() as fake:
        fake.answer = ANSWER + "\n\n" + "unbreakable" * 40 + "\n\n`" + "code" * 60 + "`"
        page = visit(fake.url, (320, 568), has_touch=True)
        ready(page)
        ask(page, "x" * 300)
        answered(page)
        fits(page, (320, 568), "narrow")


def shot(page, name):
    if SHOTS:
        page.wait_for_timeout(200)
        page.screenshot(path=f"{SHOTS}/{name}.png")


def fits(page, size, where):
    """Nothing sticks out, all text has contrast, and all controls have names."""
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], where
    assert page.evaluate("document.querySelector('#scroller').scrollWidth - document.querySelector('#scroller').clientWidth") <= 0, where
    assert page.evaluate(CONTRAST) == [], where
    assert page.evaluate(NAMELESS) == [], where
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids)), where


# Text that has less contrast than WCAG's AA asks for: 4.5, or 3 for large letters.
CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return rgba("Canvas");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility({ opacityProperty: true })) continue;
    if (element.closest("[inert], .unseen, .skip, :disabled")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgba(style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) found.push(`${walker.currentNode.textContent}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""

NAMELESS = """() => [...document.querySelectorAll("button, input, textarea, select, a, summary, [role=region], [role=log]")]
  .filter((one) => !(one.ariaLabel || one.getAttribute("aria-labelledby") || one.labels?.length || one.textContent.trim()))
  .map((one) => one.outerHTML)"""


def test_markdown_becomes_elements_and_html_stays_text(visit):
    with Fake() as fake:
        fake.answer = ANSWER + "\n<img src=x onerror=alert(1)> [bad](javascript:alert(1)) <https://example.org/a?b=c>\n\n- [x] *done*\n"
        page = visit(fake.url)
        ready(page)
        ask(page, QUESTION)
        answered(page)
        prose = answers(page)
        for selector, count in [("h3", 1), ("ol > li", 3), ("table tbody tr", 3), ("pre > code", 1), ("blockquote", 1), ("strong", 1)]:
            expect(prose.locator(selector)).to_have_count(count)
        expect(prose.locator("img, script, iframe")).to_have_count(0)
        expect(prose).to_contain_text("<script>alert(1)</script>")
        links = prose.locator("a")
        assert [link.get_attribute("href") for link in links.all()] == ["https://example.org/format", "https://example.org/a?b=c"]
        assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer"}


def note_texts(button):
    """Has a button keep what it says from now on: "Copied" is there for a moment only."""
    button.evaluate(
        """(button) => {
          button.dataset.said = "";
          const note = () => (button.dataset.said += `${button.textContent} `);
          new MutationObserver(note).observe(button, { childList: true, characterData: true, subtree: true });
        }"""
    )


def test_copies_code(visit):
    with Fake() as fake:
        page = visit(fake.url, permissions=["clipboard-read", "clipboard-write"])
        ready(page)
        ask(page, QUESTION)
        answered(page)
        note_texts(page.locator(".code button"))
        page.click(".code button")
        expect(page.locator(".code button")).to_have_attribute("data-said", re.compile("^Copied "))
        assert page.evaluate("navigator.clipboard.readText()") == ANSWER.split("```python\n")[1].split("\n```")[0]
        copy = page.locator(".answer .actions button").first
        note_texts(copy)
        page.click(".answer .actions button:has-text('Copy')")
        expect(copy).to_have_attribute("data-said", re.compile("^Copied "))
        assert page.evaluate("navigator.clipboard.readText()") == ANSWER


def test_reasoning_is_folded(visit):
    with Fake() as fake:
        fake.reasoning = REASONING
        page = visit(fake.url)
        ready(page)
        ask(page, QUESTION)
        answered(page)
        expect(page.locator(".reasoning .prose")).to_be_hidden()
        page.click(".reasoning summary")
        expect(page.locator(".reasoning .prose")).to_have_text(REASONING)
        page.select_option("#field-thinking", "off")
        ask(page, "Again")
        answered(page)
        body = fake.bodies[-1][1]
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        # What was thought is no part of the conversation.
        assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
        assert REASONING not in str(body)


def test_settings_are_sent_and_kept(visit):
    with Fake() as fake:
        page = visit(fake.url)
        ready(page)
        assert page.get_attribute("#field-temperature", "placeholder") == "0.6"
        values = {
            "temperature": 0.3, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": 0.5,
            "frequency_penalty": -0.5, "max_tokens": 99, "seed": 7,
        }
        for name, value in values.items():
            page.fill(f"#field-{name}", str(value))
        page.fill("#field-system", "Be brief.")
        page.fill("#field-stop", "END\n\\n\\n")
        page.fill("#field-top_p", "1.5")
        expect(page.locator("#hint-top_p")).to_have_text("More than 1: it is left out")
        ask(page, "One")
        answered(page)
        body = fake.bodies[-1][1]
        values["max_completion_tokens"] = values.pop("max_tokens")
        del values["top_p"]
        assert {name: body.get(name) for name in values} == values and "top_p" not in body
        assert body["stop"] == ["END", "\n\n"]
        assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One"}]
        page.reload()
        ready_again = page.input_value("#field-seed"), page.input_value("#field-system")
        assert ready_again == ("7", "Be brief.")
        page.click("#reset")
        ask(page, "Two")
        answered(page)
        assert set(fake.bodies[-1][1]) == {"model", "messages", "stream", "stream_options", "timings"}


ERRORS = [
    (400, {"message": "This model's maximum context length is 8 tokens.", "code": "context_length_exceeded"}, "Begin a new chat"),
    (400, {"message": "temperature is 9, allowed are 0 to 2", "param": "temperature"}, "Change “temperature”"),
    (413, {"message": "the body has more than 9 bytes"}, "Send less text"),
    (429, {"message": "too many requests"}, "Retry in 3 seconds."),
    (503, {"message": "the server is shutting down"}, "Retry in 3 seconds."),
    (500, {"message": "a fault"}, "its log says more"),
]


@pytest.mark.parametrize("status, error, advice", ERRORS, ids=lambda value: str(value)[:12])
def test_errors_say_what_to_do(visit, status, error, advice):
    with Fake() as fake:
        page = visit(fake.url, allowed=[status])
        ready(page)
        fake.plan = [(status, error, [("Retry-After", "3")])]
        ask(page, "One")
        expect(page.locator(".trouble")).to_contain_text(error["message"])
        expect(page.locator(".trouble")).to_contain_text(advice)
        expect(page.locator("#status")).to_have_text(error["message"])
        page.click(".actions >> text=Retry")
        answered(page)
        expect(answers(page)).to_contain_text("Why zeros help")
        expect(page.locator(".answer")).to_have_count(1)
        assert len(fake.bodies[-1][1]["messages"]) == 1


@pytest.mark.parametrize("plan, said", [("break", "The answer broke off."), ("error", "a step of the engine failed")])
def test_an_answer_that_fails_keeps_its_beginning(visit, plan, said):
    with Fake() as fake:
        page = visit(fake.url)
        ready(page)
        fake.plan = [plan]
        ask(page, "One")
        expect(page.locator(".trouble")).to_contain_text(said)
        expect(answers(page)).to_contain_text("Here is a short tour")
        expect(page.locator("#send")).to_be_visible()


def test_the_page_waits_for_the_model(visit):
    with Fake() as fake:
        # Until the notice was seen.
        fake.loading = 10**9
        page = visit(fake.url, allowed=[503])
        expect(page.locator("#notice")).to_contain_text("the model is being loaded")
        fake.loading = 0
        ready(page)
        expect(page.locator("#notice")).to_be_hidden()


def test_a_server_that_is_gone(visit):
    with Fake() as fake:
        page = visit(fake.url)
        ready(page)
        page.route("**/v1/**", lambda route: route.abort())
        ask(page, "One")
        expect(page.locator(".trouble")).to_contain_text("The server cannot be reached.")
        page.faults = [fault for fault in page.faults if "ERR_FAILED" not in fault]


def test_stop_retry_and_edit(visit):
    with Fake() as fake:
        page = visit(fake.url)
        ready(page)
        fake.plan = ["hold"]
        ask(page, "One")
        expect(answers(page)).to_contain_text("Here is")
        page.click("#stop")
        answered(page)
        expect(page.locator(".stats")).to_contain_text("stopped")
        part = answers(page).inner_text()
        page.click(".actions >> text=Continue")
        answered(page)
        body = fake.bodies[-1][1]
        assert body["continue_final_message"] and body["messages"][-1]["role"] == "assistant"
        assert answers(page).inner_text().startswith(part[:20])
        ask(page, "Two")
        answered(page)
        page.hover(".user >> nth=0")
        page.click(".user >> nth=0 >> text=Edit")
        page.keyboard.press("Escape")
        expect(page.locator(".editor")).to_have_count(0)
        page.click(".user >> nth=0 >> text=Edit")
        page.fill(".editor textarea", "Three")
        page.keyboard.press("Enter")
        answered(page)
        assert fake.bodies[-1][1]["messages"] == [{"role": "user", "content": "Three"}]
        expect(page.locator(".message")).to_have_count(2)
        page.click("#new-chat")
        expect(page.locator(".message")).to_have_count(0)
        expect(page.locator("#welcome")).to_be_visible()


def test_keyboard_alone(visit):
    with Fake() as fake:
        page = visit(fake.url, (900, 700))
        ready(page)
        expect(page.locator("#message")).to_be_focused()
        page.keyboard.type("One")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("more")
        assert page.input_value("#message") == "One\nmore"
        fake.plan = ["hold"]
        page.keyboard.press("Enter")
        expect(answers(page)).to_contain_text("Here is")
        page.keyboard.press("Escape")
        answered(page)
        expect(page.locator("#message")).to_be_focused()
        page.keyboard.press("ArrowUp")
        expect(page.locator(".editor textarea")).to_be_focused()
        page.keyboard.type(" and more")
        page.keyboard.press("Enter")
        answered(page)
        assert fake.bodies[-1][1]["messages"] == [{"role": "user", "content": "One\nmore and more"}]

        # Settings lie over the chat here: the focus stays in them, and comes back.
        page.focus("#open-panel")
        page.keyboard.press("Enter")
        expect(page.locator("#close-panel")).to_be_focused()
        assert page.evaluate("document.querySelector('#main').inert")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("!document.querySelector('#main').contains(document.activeElement)")
        page.focus("#field-temperature")
        page.keyboard.press("ArrowUp")
        assert page.input_value("#field-temperature") == "0.7"
        page.keyboard.press("Escape")
        expect(page.locator("#panel")).to_be_hidden()
        expect(page.locator("#open-panel")).to_be_focused()

        # Whatever has the focus shows it.
        page.focus(".skip")
        page.keyboard.press("Enter")
        expect(page.locator("#message")).to_be_focused()
        page.focus(".skip")
        for _ in range(12):
            page.keyboard.press("Tab")
            shown = page.evaluate(
                """() => {
                  const one = document.activeElement;
                  if (one === document.body || one.id === "message") return "by the box around it";
                  const style = getComputedStyle(one);
                  return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1 ? "yes" : one.outerHTML;
                }"""
            )
            assert shown in ("yes", "by the box around it"), shown


def test_colours_can_be_switched_and_stay(visit):
    with Fake() as fake:
        page = visit(fake.url, colours="light")
        ready(page)

        def brightness():
            return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)")

        assert brightness() > 600
        page.click("#theme")
        assert brightness() < 100
        expect(page.locator("#theme")).to_have_attribute("aria-label", "Switch to light colours")
        page.reload()
        assert brightness() < 100
        page.click("#theme")
        assert brightness() > 600
        # Back at the system's, it follows the system.
        page.emulate_media(color_scheme="dark")
        assert brightness() < 100


def test_a_long_answer_keeps_up(visit):
    with Fake(delay=0) as fake:
        fake.answer = (ANSWER + "\n\n") * 60
        page = visit(fake.url)
        ready(page)
        ask(page, "A long one")
        answered(page)
        expect(answers(page).locator("table")).to_have_count(60)
        scroller = page.locator("#scroller")
        assert scroller.evaluate("(s) => s.scrollHeight - s.scrollTop - s.clientHeight") < 60
        # Who reads further up is left there.
        fake.answer, fake.plan = ANSWER, ["hold"]
        ask(page, "Another")
        expect(answers(page).last).to_contain_text("Here is")
        scroller.evaluate("(s) => (s.scrollTop = 0)")
        expect(page.locator("#to-end")).to_be_visible()
        fake.go.set()
        answered(page)
        assert scroller.evaluate("(s) => s.scrollTop") < 10
        page.click("#to-end")
        expect(page.locator("#to-end")).to_be_hidden()


def test_a_model_without_a_template(visit):
    with Fake(meta={**META, "chat_template": False, "reasoning": False}) as fake:
        page = visit(fake.url)
        ready(page)
        fake.plan = ["length"]
        ask(page, "Once upon a time")
        answered(page)
        path, body = fake.bodies[-1]
        assert path == "/v1/completions" and body["prompt"] == "Once upon a time" and body["max_tokens"] == 256
        expect(page.locator("#field-system")).to_be_disabled()
        expect(page.locator("#thinking-field")).to_be_hidden()
        # Enter without a text goes on.
        page.keyboard.press("Enter")
        answered(page)
        assert fake.bodies[-1][1]["prompt"] == "Once upon a time" + ANSWER


def test_modules(tmp_path):
    """In a folder beside a package.json: older versions of Node need one to take .js for modules."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < 18:
        pytest.skip(f"node {version} runs no tests, 18 and later do")
    test = "tests/clients/page/modules.test.mjs"
    for file in [ROOT / test, *PAGE.glob("*.js")]:
        to = tmp_path / file.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run([node, "--test", test], cwd=tmp_path, capture_output=True, timeout=PROGRAM_SECONDS, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
