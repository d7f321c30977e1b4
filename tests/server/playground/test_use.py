"""The page of ``fenlei serve``: sizes, keys, names, colours, and that nothing of the data ever runs in it."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.server.playground.visits import EVIL, SENTENCES


class TestUse:
    @pytest.mark.parametrize("width", [1280, 360])
    @pytest.mark.parametrize("language", ["en", "zh"])
    def test_it_fits_its_window(self, page, served, language, width, tmp_path):
        data = tmp_path / f"{'long-name-' * 8}.csv"
        data.write_text("text,b\n" + "".join(f"{'word' * 20}{i},{'x' * 90}\n" for i in range(9)), encoding="utf-8")
        page.visit(served.url, width=width, height=800)
        if language == "zh":
            page.click("#language")
        page.run("document.querySelector('#settings-fold').open = true")
        page.set("#model", "many")
        for details in ("#key-fold", "#candidates-fold"):
            page.run(f"document.querySelector('{details}').open = true")
        page.run("document.querySelector('#explain').checked = true")
        page.classify(SENTENCES + "w" * 300)
        page.click(".foot button")
        page.run("document.querySelector('.effect-box details').open = true")
        self.fits(page, width)
        page.click("#tab-file")
        self.fits(page, width)
        page.choose_file(data)
        page.wait("document.querySelector('#start')")
        self.fits(page, width)
        page.set("#model", "news")
        page.classify_file()
        page.click(".rows .open")
        self.fits(page, width)
        page.click("#tab-history")
        self.fits(page, width)

    def fits(self, page, width):
        assert page.run("document.documentElement.scrollWidth") <= width
        assert not re.findall(r"\{\w+\}|undefined|NaN|\[object", page.run("document.body.innerText"))

    def test_by_keyboard_alone(self, page, served, tmp_path):
        """Every step by keys; whatever has the focus shows it."""
        page.press("Tab")
        assert page.text(":focus") == "Skip to the text"
        page.press("Enter")
        self.tab_to(page, "#text")
        page.write("股市大涨")
        page.press("Enter", ctrl=True)
        page.wait("document.querySelector('.headline')")
        assert page.run("document.activeElement.id") == "text", "one can go on typing"
        self.tab_to(page, ".foot button:nth-child(2)")
        page.press("Enter")
        page.wait("document.querySelector('.code pre')")
        self.tab_to(page, "#tab-texts", back=True)
        page.press("ArrowRight")
        page.press("ArrowRight")
        assert page.run("document.activeElement.id") == "tab-history"
        self.tab_to(page, "#history-list .open")
        page.press("Enter")
        assert page.run("document.activeElement.id") == "text"
        assert page.text(".headline .said")
        self.tab_to(page, "#candidates-fold summary", back=True)
        page.press("Enter")
        self.tab_to(page, "#candidates input")
        page.press("Space")
        assert page.text("#candidates-line") == "1 of 3"
        self.tab_to(page, "#abstain input", back=True)
        page.press("ArrowDown")
        assert page.run("document.querySelector('input[name=abstain]:checked').value") == "never"
        self.tab_to(page, "#tab-texts", back=True)
        page.press("ArrowRight")
        self.tab_to(page, "#choose")
        data = tmp_path / "d.csv"
        data.write_text("text\n" + "国足\n" * 3, encoding="utf-8")
        page.choose_file(data)
        page.wait("document.activeElement.id === 'start'")
        page.press("Enter")
        page.wait("document.querySelector('.job h2')?.textContent === 'Done'")
        assert page.run("document.activeElement.id") == "again", "the focus is not lost when buttons change"
        self.tab_to(page, ".rows .open")
        page.press("Enter")
        assert page.run("document.activeElement.getAttribute('aria-expanded')") == "true"

    def focus_shows(self, page):
        return page.run(
            "(() => { const n = document.activeElement; if (n === document.body || n.id === 'work') return true;"
            "const s = getComputedStyle(n);"
            "return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 1; })()"
        )

    def tab_to(self, page, selector, *, back=False, most=60):
        for _ in range(most):
            assert self.focus_shows(page), page.run("document.activeElement.outerHTML.slice(0, 200)")
            if page.run(f"document.activeElement === document.querySelector({json.dumps(selector)})"):
                return
            page.press("Tab", shift=back)
        pytest.fail(f"not reached by Tab: {selector}")

    def test_everything_that_can_be_used_has_a_name(self, page):
        page.click("#explain")
        page.classify(SENTENCES)
        for tab in ("#tab-texts", "#tab-file", "#tab-history"):
            page.click(tab)
            assert self.nameless(page) == []

    def nameless(self, page):
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        roles = {
            "button",
            "textbox",
            "checkbox",
            "radio",
            "combobox",
            "slider",
            "spinbutton",
            "tab",
            "switch",
            "link",
            "searchbox",
        }
        used = [n for n in nodes if n.get("role", {}).get("value") in roles and not n.get("ignored")]
        assert len(used) > 8
        return [n["role"]["value"] for n in used if not n.get("name", {}).get("value", "").strip()]

    def test_what_is_looked_for_is_found(self, page):
        """Negative controls: a focus that does not show, a button without a name, a pale text, a wide element."""
        page.press("Tab")
        assert self.focus_shows(page)
        page.run(
            "{ const s = new CSSStyleSheet(); s.replaceSync('* { outline: none !important }');"
            "document.adoptedStyleSheets = [s]; }"
        )
        assert not self.focus_shows(page)
        page.run("document.querySelector('main').append(document.createElement('button'))")
        assert self.nameless(page) == ["button"]
        assert contrast([150, 150, 150], [255, 255, 255]) < 4.5 < contrast([0, 0, 0], [255, 255, 255])
        page.run(
            "{ const n = document.createElement('div'); n.textContent = 'x'; n.style.setProperty('width', '3000px');"
            "document.querySelector('main').append(n); }"
        )
        with pytest.raises(AssertionError):
            self.fits(page, 1280)

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_text_stands_out_from_what_is_behind_it(self, page, served, theme):
        page.visit(served.url, theme=theme)
        for behind in ("--card", "--bg"):
            for name in ("--ink", "--soft", "--accent", "--good", "--bad", "--warn"):
                assert contrast(*(self.color(page, n) for n in (name, behind))) >= 4.5, (name, behind)
            assert contrast(self.color(page, "--edge"), self.color(page, behind)) >= 3.0, "edges of fields"
        assert contrast(self.color(page, "--on-accent"), self.color(page, "--accent")) >= 4.5

    def color(self, page, name):
        value = page.run(f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()")
        digits = value[1:] if len(value) == 7 else "".join(2 * c for c in value[1:])
        return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def contrast(one, other):
    """WCAG 2.2, "contrast ratio"."""

    def light(rgb):
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


class TestHostile:
    def test_nothing_of_text_label_file_or_server_runs(self, page, served, tmp_path):
        page.set("#model", "many")
        page.run("document.querySelector('#candidates-fold').open = true")
        page.run("document.querySelector('#explain').checked = true")
        page.classify(f"{EVIL}。{EVIL}！")
        page.click(".probabilities > button")
        page.run("document.querySelector('.effect-box details').open = true")
        for button in (1, 2):
            page.click(f".foot button:nth-child({button})")
        assert EVIL in page.texts(".bars .of")
        data = tmp_path / "<img src=x onerror=alert(1)>.csv"
        cell = EVIL.replace('"', '""')
        data.write_text(f'"{cell}",text\n"{cell}","{cell}"\n', encoding="utf-8")
        page.click("#tab-file")
        page.choose_file(data)
        page.classify_file()
        page.click(".rows .open")
        assert page.text("#file-view h2") == data.name
        assert EVIL in page.text(".rows dl")
        page.click("#tab-history")
        page.click("#language")
        page.run("new Promise((done) => setTimeout(done, 300))")
        assert page.run("document.title") != "owned"
        assert EVIL in page.text("#history-list")
        assert page.run("document.querySelectorAll('main img, main script, iframe, object').length") == 0
        assert not [url for url in page.requests if url.endswith("/x")]

    def test_the_same_as_markup_is_stopped_by_the_policy_alone(self, opened, served):
        """Negative control of the one before: put in as markup it makes elements; and without the policy it runs."""
        insert = f"document.querySelector('main').insertAdjacentHTML('beforeend', {json.dumps(EVIL)})"
        loaded = "new Promise((done) => setTimeout(done, 300))"
        opened.console.clear()
        opened.visit(served.url)
        opened.run(insert)
        opened.run(loaded)
        assert opened.run("document.querySelectorAll('main img').length") == 1
        assert opened.run("document.title") != "owned"
        assert any("Content Security Policy" in line for line in opened.complaints())
        opened.call("Page.setBypassCSP", enabled=True)
        try:
            opened.visit(served.url)
            opened.run(insert)
            opened.wait("document.title === 'owned'")
        finally:
            opened.call("Page.setBypassCSP", enabled=False)
            opened.console.clear()

    def test_a_request_elsewhere_would_be_seen(self, opened, served):
        """Negative control of what every test here ends with: the policy forbids it, and both facts are noted."""
        opened.console.clear()
        opened.requests.clear()
        opened.visit(served.url)
        opened.run("fetch('http://127.0.0.1:9/').catch(() => 0)")
        opened.wait("true")
        assert any("Content Security Policy" in line for line in opened.complaints())
        opened.call("Page.setBypassCSP", enabled=True)
        try:
            opened.visit(served.url)
            opened.run("fetch('http://127.0.0.1:9/').catch(() => 0)")
            assert "http://127.0.0.1:9/" in opened.requests
        finally:
            opened.call("Page.setBypassCSP", enabled=False)
            opened.console.clear()

    def test_the_parts_hold_nothing_that_the_policy_would_refuse(self):
        from fenlei.server.assets import assets, playground

        html = playground().content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|https?://", html)
        names = set(re.findall(r'(?:href|src)="assets/([^"]+)"', html))
        assert names <= set(assets())
        modules = {
            name: asset.content.decode()
            for name, asset in assets().items()
            if asset.media_type.startswith("text/javascript")
        }
        own = {name: text for name, text in modules.items() if not name.startswith(("swagger", "docs"))}
        assert len(own) > 10
        for name, text in own.items():
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://", text
            ), name
            for used in re.findall(r'from "\./([^"]+)"', text):
                assert used in assets(), f"{name} asks for {used}"
            assert len(text.splitlines()) < 400
