"""The page of ``fenlei serve`` in a headless Chromium, against the real application with a tiny model: texts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.evaluation.report import chromium
from tests.server.made import NEWS, ON_CPU
from tests.server.playground.visits import EVIL, MANY, SENTENCES, Served, Visitor


def percent(p: float) -> str:
    return f"{100 * p:.1f}\u202f%"


class TestTexts:
    def test_the_answer_is_the_servers(self, page, served):
        page.classify("股市大涨，基金经理看好银行")
        (result,) = served.ask({"text": "股市大涨，基金经理看好银行", "threshold": None})["results"]
        page.click("input[value=never]")
        page.classify("股市大涨，基金经理看好银行")
        assert page.text(".headline .said") == result["label"]
        assert page.text(".headline .sure") == percent(result["probability"])
        assert page.texts(".bars .of") == list(result["probabilities"])
        assert page.texts(".bars .p") == [percent(p) for p in result["probabilities"].values()]
        widths = page.run("[...document.querySelectorAll('.bars .fill')].map((n) => parseFloat(n.style.width))")
        assert widths == pytest.approx([100 * p for p in result["probabilities"].values()], rel=1e-4)
        assert re.match(r"scored in .*s · waited .*s · .*s in all · \d+ tokens", page.text(".timing"))
        assert page.text("#said") == f"{result['label']}, {percent(result['probability'])}"

    def test_where_it_declines(self, page, served):
        page.click("input[value=below]")
        page.set("#below", "100")
        page.classify("股市大涨")
        assert served.faults.bodies[-1]["threshold"] == 1
        (result,) = served.ask({"text": "股市大涨"})["results"]
        assert page.text(".headline .said") == "No answer"
        assert page.text(".headline .sure") is None
        assert f"{result['label']} is the most probable label" in page.text(".why")
        assert page.run("document.querySelector('.tick').style.left") == "100%"
        assert page.text("#said").startswith("No answer. Most probable: ")
        page.click("input[value=never]")
        page.classify("股市大涨")
        assert served.faults.bodies[-1]["threshold"] is None
        assert page.text(".headline .said") == result["label"]
        page.click("input[value=own]")
        page.classify("股市大涨")
        assert "threshold" not in served.faults.bodies[-1]
        assert page.text("#own-line") == "As the classifier says: below 50.0\u202f%"

    def test_where_another_signal_decides(self, page, served):
        page.set("#model", "many")
        assert page.text("#own-line") == "As the classifier says: below -0.250"
        page.click("input[value=below]")
        assert page.run("[document.querySelector('#below-range').min, document.querySelector('#below').max]") == [
            "-1",
            "0",
        ]
        page.set("#below", "0.5")
        page.set("#below", "0")
        page.classify("股市大涨")
        assert served.faults.bodies[-1]["threshold"] == 0
        (result,) = served.ask({"text": "股市大涨", "model": "many"})["results"]
        assert page.text(".headline .said") == "No answer"
        assert f"the confidence by entropy, {result['confidence']:.3f}, is below the threshold, 0.000." in page.text(
            ".why"
        )
        assert page.text(".tick") is None, "it is no probability"
        page.set("#model", "news")
        assert self.range_of(page) == ["0", "100"]

    def range_of(self, page):
        return page.run("[document.querySelector('#below-range').min, document.querySelector('#below').max]")

    def test_a_shortened_text_is_marked(self, page):
        page.classify("短")
        assert page.text(".note.warn") is None
        page.classify("国足今晚迎战韩国队，" * 100)
        assert page.text(".note.warn").startswith("Read in part.")

    def test_more_labels_than_fit_at_first(self, page, served):
        page.set("#model", "many")
        page.classify("股市大涨")
        (result,) = served.ask({"text": "股市大涨", "model": "many"})["results"]
        assert page.texts(".bars .of") == list(result["probabilities"])[:5]
        page.click(".probabilities > button")
        assert page.texts(".bars .of") == list(result["probabilities"])
        page.click(".probabilities > button")
        assert len(page.texts(".bars .of")) == 5

    def test_candidates(self, page, served):
        page.run("document.querySelector('#candidates-fold').open = true")
        for name in ("财经", "科技"):
            page.run(
                f"[...document.querySelectorAll('#candidates label')].find((n) => n.textContent === '{name}').click()"
            )
        assert page.text("#candidates-line") == "2 of 3"
        page.classify("国足今晚迎战韩国队")
        assert served.faults.bodies[-1]["candidates"] == ["财经", "科技"]
        assert sorted(page.texts(".bars .of")) == sorted(["财经", "科技"])
        page.click("#candidates-all")
        page.classify("国足今晚迎战韩国队")
        assert "candidates" not in served.faults.bodies[-1]

    def test_of_many_labels_one_is_found(self, page):
        page.set("#model", "many")
        page.run("document.querySelector('#candidates-fold').open = true")
        page.set("#candidates-search", "LONG")
        assert page.texts("#candidates label") == [MANY[-1]]

    def test_sentences(self, page, served):
        page.run("document.querySelector('#explain').checked = true")
        page.classify(SENTENCES)
        (result,) = served.ask({"text": SENTENCES, "explain": True})["results"]
        effects = [-s["change"] for s in result["explanation"]["sentences"]]
        assert "".join(page.texts(".effects > span")) == SENTENCES
        assert len(effects) == 4
        sides = page.run("[...document.querySelectorAll('.effects > span')].map((n) => n.className)")
        assert sides == ["for" if e >= 0.0005 else "against" if e <= -0.0005 else "neither" for e in effects]
        shown = [float(cell.replace("−", "-")) for cell in page.texts(".effect-table td:nth-child(2)")]
        assert shown == pytest.approx([100 * e for e in effects], abs=0.06)
        titles = page.run("[...document.querySelectorAll('.effects > span')].map((n) => n.title)")
        assert all(f"points for {result['label']}" in title for title in titles)
        assert page.texts(".effect-table thead th")[1] == f"Effect on {result['label']}, points"

    def test_sentences_after_the_answer(self, page, served):
        page.classify(SENTENCES)
        assert "explain" not in served.faults.bodies[-1]
        page.click(".effects-place button")
        page.wait("document.querySelector('.effects')")
        assert served.faults.bodies[-1] == {"text": SENTENCES, "model": "news", "explain": True}
        page.click("#language")
        assert page.text(".effect-box h3") == "各句的影响"

    def test_several_lines(self, page, served):
        page.click("#lines")
        page.classify("国足今晚迎战韩国队\n\n  \n股市大涨\r\n芯片")
        assert served.faults.bodies[-1]["texts"] == ["国足今晚迎战韩国队", "股市大涨", "芯片"]
        results = served.ask({"texts": ["国足今晚迎战韩国队", "股市大涨", "芯片"]})["results"]
        said = ["No answer" if r["abstained"] else r["label"] for r in results]
        assert page.texts("#result .answers .said") == said
        page.click(".answers li:nth-child(2) .open")
        assert page.text(".answers .whole") == "股市大涨"
        assert page.texts(".answers .bars .of") == list(results[1]["probabilities"])
        page.click(".answers .effects-place button")
        page.wait("document.querySelector('.answers .effects')")

    def test_many_lines_become_a_table(self, page, served):
        lines = [f"第{i}场 国足" for i in range(70)]
        page.click("#lines")
        page.set("#text", "\n".join(lines))
        page.click("#classify")
        page.wait("document.querySelector('.job h2')?.textContent === 'Done'")
        assert [t for body in served.faults.bodies for t in body["texts"]] == lines
        assert page.run("document.querySelector('#tab-file').getAttribute('aria-selected')") == "true"
        assert page.text("#grid .small[role=status]") == "70 of 70 rows"

    def test_nothing_is_not_sent(self, page, served):
        page.classify("  \n ")
        assert page.text("#notice p") == "There is no text yet: type or paste one."
        assert served.faults.bodies == []

    def test_cancel(self, page, served):
        served.faults.gate.clear()
        page.set("#text", "国足")
        page.click("#classify")
        page.wait("!document.querySelector('#text-stop').hidden")
        page.click("#text-stop")
        page.wait("document.querySelector('#notice p')")
        assert page.text("#notice p") == "Cancelled. Nothing was answered."
        served.faults.gate.set()
        page.classify("国足")
        assert page.text("#notice p") is None

    def test_as_code(self, page, served):
        text = 'it\'s "国足" \\ $HOME\n`x` !'
        page.classify(text)
        page.click(".foot button:first-child")
        page.wait("document.querySelector('.code pre')")
        command = shlex.split(page.text(".code pre"))
        assert command[:2] == ["curl", f"{served.url}v1/classify"]
        assert json.loads(command[command.index("--data-raw") + 1]) == {"text": text, "model": "news"}
        page.click(".foot button:nth-child(2)")
        page.wait("document.querySelector('.code pre').textContent.startsWith('import')")
        done = subprocess.run([sys.executable, "-c", page.text(".code pre")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0] == served.ask({"text": text})["results"][0]["label"]


class TestLanguageAndHistory:
    def test_the_two_languages_have_the_same_words(self, page):
        page.run(
            "Promise.all([import('/assets/words.js'), import('/assets/words_zh.js')])"
            ".then(([a, b]) => { window.EN = a.EN; window.ZH = b.ZH; })"
        )
        english, chinese = (
            page.run(f"Object.keys({name}).filter((k) => !k.endsWith('_one'))") for name in ("EN", "ZH")
        )
        assert set(english) == set(chinese)
        page.run("window.holes = (text) => String((text.match(/{\\w+}/g) || []).sort())")
        assert page.run("Object.keys(ZH).filter((k) => holes(EN[k]) !== holes(ZH[k]))") == []
        assert page.run("Object.keys(EN).filter((k) => k.endsWith('_one') && !(k.slice(0, -4) in EN))") == []

    def test_the_switch_is_kept_and_changes_the_page_in_place(self, page, served):
        page.classify(SENTENCES)
        assert page.text(".effects-place button") == "Which sentences count?"
        page.run("window.same = true")
        page.click("#language")
        assert page.run("window.same && document.documentElement.lang") == "zh-CN"
        assert page.text("#classify span") == "分类"
        assert page.text(".effects-place button") == "哪些句子起了作用？"
        assert page.run("document.querySelector('#text').placeholder") == "输入或粘贴文本"
        page.click("#theme")
        page.visit(served.url, fresh=False)
        assert page.run("document.documentElement.lang") == "zh-CN"
        assert page.run("document.documentElement.dataset.theme") == "dark"
        page.click("#language")
        page.visit(served.url, fresh=False)
        assert page.run("document.documentElement.lang") == "en"

    def test_language_and_theme_are_at_first_the_browsers(self, served):
        if chromium.BINARY is None:
            pytest.skip("no chromium here")
        chinese = Visitor("zh-CN")
        try:
            for theme in ("dark", "light"):
                chinese.visit(served.url, theme=theme)
                assert chinese.run("document.documentElement.lang") == "zh-CN"
                assert chinese.run("document.documentElement.dataset.theme") == theme
            chinese.classify("股市大涨")
            assert chinese.text("#result .timing").startswith("计算 ")
        finally:
            chinese.close()

    def test_history(self, page, served):
        for text in ("国足今晚迎战韩国队", "股市大涨"):
            page.classify(text)
        said = page.text(".headline .said")
        asked = len(served.faults.bodies)
        page.click("#tab-history")
        assert page.texts("#history-list .text") == ["股市大涨", "国足今晚迎战韩国队"]
        assert page.text("#history-count") == "2"
        page.click("#history-list li:nth-child(1) .open")
        assert page.run("document.querySelector('#text').value") == "股市大涨"
        assert page.text(".headline .said") == said
        assert len(served.faults.bodies) == asked, "shown again without asking"
        assert "股市" not in page.run("JSON.stringify({ ...localStorage })")
        page.visit(served.url, fresh=False)
        assert page.texts("#history-list .text") == [], "not ticked: forgotten"

    def test_history_is_kept_only_while_ticked(self, page, served):
        page.classify("股市大涨")
        page.click("#tab-history")
        page.click("#history-keep")
        page.visit(served.url, fresh=False)
        page.click("#tab-history")
        assert page.texts("#history-list .text") == ["股市大涨"]
        assert page.run("document.querySelector('#history-keep').checked")
        page.click("#history-list .open")
        assert page.texts(".bars .of")[0] in NEWS
        page.click("#tab-history")
        page.click("#history-keep")
        assert "股市" not in page.run("JSON.stringify({ ...localStorage })")
        page.click("#history-clear")
        assert page.text("#history-list") == "Nothing was asked yet."

    @pytest.mark.parametrize(
        "kept", ["{", "[1, null, {}]", '[{"texts": ["a"], "results": [null], "body": {}, "rule": {}}]']
    )
    def test_a_damaged_history_does_no_harm(self, page, served, kept):
        page.run(
            f"localStorage.setItem('fenlei.history', {json.dumps(kept)}); localStorage.setItem('fenlei.page', '[')"
        )
        page.visit(served.url, fresh=False)
        page.classify("股市大涨")
        assert page.text("#history-count") == "1"


class TestErrors:
    def error(self, status, code, message="what the server says", **headers):
        return status, headers, {"error": {"message": message, "type": "x", "param": None, "code": code}}

    def test_a_busy_server_is_asked_again_when_it_says(self, page, served):
        served.faults.errors = [self.error(429, "queue_full", **{"Retry-After": "1"})] * 2
        page.set("#text", "股市大涨")
        page.click("#classify")
        page.wait("document.querySelector('#notice p')?.textContent === 'The server is busy. Trying again in 1 s.'")
        page.wait("document.querySelector('.headline')")
        times = served.faults.times
        assert len(times) == 3
        assert all(later - sooner > 0.95 for sooner, later in pairwise(times))
        assert page.text("#notice p") is None

    @pytest.mark.parametrize(
        ("status", "code", "english", "chinese"),
        [(422, "text_too_long", "A text is longer than the server takes.", "有一条文本超过服务器能处理的长度。"),
         (404, "model_not_found", "This classifier is no longer served. Reload the page and choose another one.",
          "这个分类器已不再提供，请刷新页面后另选一个。"),
         (400, "unheard_of", "The server cannot take this request as it is.", "服务器无法处理这个请求。"),
         (403, "origin_not_allowed", "The server does not allow this request.", "服务器不允许这个请求。")],
    )  # fmt: skip
    def test_errors_in_both_languages(self, page, served, status, code, english, chinese):
        served.faults.errors = [self.error(status, code, f"the {EVIL} server's own words")]
        page.classify("股市大涨")
        assert page.text("#notice p") == english
        assert f"the {EVIL} server's own words" in page.text("#notice .detail")
        page.click("#language")
        assert page.text("#notice p") == chinese
        page.click("#notice button")
        assert page.text("#notice p") is None

    def test_a_request_that_the_server_refuses(self, page, served):
        """Nothing made up: the application's own limit."""
        page.classify("长" * 1_000_001)
        assert page.text("#notice p") in (
            "A text is longer than the server takes.", "This is more text than the server takes at once.",
        )  # fmt: skip

    def test_no_answer_or_an_odd_one(self, page, served):
        served.faults.errors = [(200, {}, {"results": []})]
        page.classify("股市大涨")
        assert page.text("#notice p").startswith("The answer is not what this page expects.")

    def test_with_a_key(self, opened, news_folder, tmp_path):
        secret = "a-key-of-sixteen-characters"
        keys = tmp_path / "keys.txt"
        keys.write_text(f"{secret}\n", encoding="utf-8")
        guarded = Served([("news", news_folder)], ON_CPU, api_key_file=keys)
        try:
            opened.visit(guarded.url)
            assert opened.text("#notice p") == "The server asks for an API key: type one of its keys in the settings."
            assert opened.run("document.activeElement.id") == "key", "one can type it at once"
            opened.write("wrong-key-of-sixteen")
            opened.press("Enter")
            opened.wait("document.querySelector('#key-line').textContent === 'set'")
            opened.wait("document.querySelector('#notice p')")
            opened.set("#key", secret)
            opened.click("#key-form button")
            opened.wait("document.querySelector('#model').options.length === 1")
            opened.classify("股市大涨")
            assert opened.text(".headline .said")
            for button in (1, 2):
                opened.click(f".foot button:nth-child({button})")
                opened.wait("document.querySelector('.code pre')")
                assert "FENLEI_API_KEY" in opened.text(".code pre")
                assert secret not in opened.text("body")
            assert secret not in opened.run(
                "JSON.stringify({ ...localStorage, ...sessionStorage }) + location.href + document.cookie"
            )
            opened.visit(guarded.url, fresh=False)
            assert opened.text("#notice p") is not None, "forgotten with the page"
        finally:
            guarded.close()

    def test_a_server_that_went_away(self, opened, news_folder):
        gone = Served([("news", news_folder)], ON_CPU)
        opened.visit(gone.url)
        gone.close()
        opened.set("#text", "股市大涨")
        opened.click("#classify")
        opened.wait("document.querySelector('#notice p')?.textContent.startsWith('The server did not answer. Trying')")
        opened.click("#text-stop")
        opened.wait("document.querySelector('#notice p')?.textContent.startsWith('Cancelled.')")
