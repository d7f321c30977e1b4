"""The page of ``fenlei serve``: files of texts, dropped or chosen, classified in pieces and saved."""

from __future__ import annotations

import csv
import json

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.server.playground.visits import EVIL, wait_until

CSV = '\ufefflabel,"te""xt",n\n"=1+1","国足今晚,""迎战""韩国队\n第二行",-5\n@SUM(A1),股市大涨,+x\n\t芯片,,007\n'


def by_module(page, expression: str, *names: str):
    """The value of an expression that uses what modules of the page export."""
    imports = ", ".join(f"import('/assets/{name}.js')" for name in names)
    return page.run(f"Promise.all([{imports}]).then((all) => Object.assign({{}}, ...all)).then((m) => {expression})")


def answers(served, texts, **more):
    return served.ask({"texts": texts, **more})["results"]


class TestFiles:
    def test_a_csv_file_is_dropped_and_saved(self, page, served, tmp_path):
        data = tmp_path / "新闻.csv"
        data.write_text(CSV, encoding="utf-8")
        page.drop_file(data)
        page.wait("document.querySelector('#start')")
        assert page.run("document.querySelector('#tab-file').getAttribute('aria-selected')") == "true"
        assert page.text("#file-view .file-name") == "新闻.csv3 rows · 3 columns · UTF-8"
        page.set("#column", "1")
        page.classify_file()
        texts = ['国足今晚,"迎战"韩国队\n第二行', "股市大涨"]
        assert [t for body in served.faults.bodies for t in body["texts"]] == texts
        saved = page.saved("#save-csv", tmp_path / "out")
        assert saved.name == "新闻-classified.csv"
        raw = saved.read_bytes()
        assert raw.startswith("\ufeff".encode())
        head, *rows = csv.reader(raw.decode("utf-8-sig").splitlines(keepends=True))
        assert head == [
            "input_label", 'te"xt', "n", "label", "probability", "probabilities", "abstained", "truncated", "error",
        ]  # fmt: skip
        # formulas are put out of action; a plain negative number is none
        assert [row[:3] for row in rows] == [
            ["'=1+1", texts[0], "-5"],
            ["'@SUM(A1)", texts[1], "'+x"],
            ["'\t芯片", "", "007"],
        ]
        for row, result in zip(rows, answers(served, texts), strict=False):
            assert row[3] == result["label"]
            assert float(row[4]) == pytest.approx(result["probability"], abs=1e-5)
            assert json.loads(row[5]) == pytest.approx(result["probabilities"], abs=1e-5)
            assert row[6:] == [str(result["abstained"]).lower(), "false", ""]
        assert rows[2][3:] == ["", "", "", "", "", "no text"]

    def test_a_jsonl_file_is_chosen_and_saved(self, page, served, tmp_path):
        lines = [
            '{"text": "国足今晚迎战韩国队", "n": 12345678901234567890, "x": {"y": [1.0, "a\\u2028b"]}, '
            '"probability": "mine"}',
            '{"id": 7, "text": "股市大涨", "empty": null}',
            "no json",
            '{"text": "  "}',
        ]
        data = tmp_path / "in.jsonl"
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        page.click("#tab-file")
        page.choose_file(data)
        page.wait("document.querySelector('#start')")
        assert page.texts("#file-view .note") == ["Line 3 is no JSON and was left out."]
        assert page.run("document.querySelector('#column').selectedOptions[0].textContent") == "text"
        page.classify_file()
        first, second = answers(served, ["国足今晚迎战韩国队", "股市大涨"])
        saved = page.saved("#save-jsonl", tmp_path / "out")
        assert saved.name == "in-classified.jsonl"
        written = saved.read_text("utf-8").split("\n")
        assert written.pop() == ""
        assert '"n":12345678901234567890,' in written[0]
        assert '[1.0,"' in written[0], "numbers stay as they are written"
        found = [json.loads(line) for line in written]
        for record, row, result in zip(found, lines[:2], (first, second), strict=False):
            given = json.loads(row)
            if "probability" in given:
                given["input_probability"] = given.pop("probability")
            assert {key: record[key] for key in given} == given
            assert set(record) - set(given) == {"label", "probability", "probabilities", "abstained", "truncated"}
            assert record["label"] == result["label"]
            assert record["probabilities"] == pytest.approx(result["probabilities"], abs=1e-5)
            assert record["abstained"] is result["abstained"]
        assert found[2]["label"] is None
        assert found[2]["error"] == "no text"

    def test_a_gb18030_file(self, page, served, tmp_path):
        data = tmp_path / "gb.csv"
        data.write_bytes("编号;内容\n1;国足今晚迎战韩国队\n2;股市大涨\n".encode("gb18030"))
        page.drop_file(data)
        page.wait("document.querySelector('#start')")
        assert page.text("#file-view .file-name").endswith("GB18030")
        assert page.texts(".preview li") == ["国足今晚迎战韩国队", "股市大涨"]
        page.set("#encoding", "utf-8")
        page.wait("document.querySelector('#file-view .note')")
        assert "no UTF-8 characters" in page.text("#file-view .note")
        page.set("#encoding", "")
        page.wait("!document.querySelector('#file-view .note')")
        page.classify_file()
        assert served.faults.bodies[0]["texts"] == ["国足今晚迎战韩国队", "股市大涨"]

    def test_the_table(self, page, served, tmp_path):
        texts = [f"国足 {i} 股市{'!' * (i % 7)} 芯片 {i * 31 % 17}" for i in range(60)]
        data = tmp_path / "t.txt"
        data.write_text("\r\n".join(texts), encoding="utf-8")
        page.click("#tab-file")
        page.choose_file(data)
        page.classify_file()
        results = answers(served, texts)
        said = [None if r["abstained"] else r["label"] for r in results]
        counts = {label: said.count(label) for label in set(said) - {None}}
        shown = page.run(
            "[...document.querySelectorAll('.counts button:not(.abstained)')].map((n) =>"
            "[n.querySelector('.of').textContent, parseInt(n.querySelector('.p').textContent)])"
        )
        assert {name: int(n) for name, n in shown} == counts
        assert [n for _, n in shown] == sorted(counts.values(), reverse=True)
        label = shown[0][0]
        page.click(".counts button")
        assert page.text("#grid .small[role=status]") == f"{counts[label]} of 60 rows"
        assert set(page.texts(".rows td.label strong")) == {label}
        page.click("#grid-clear")
        page.set("#grid-search", "国足 47 ")
        page.wait("document.querySelector('#grid .small[role=status]').textContent === '1 of 60 rows'")
        assert page.texts(".rows td.text") == [texts[47]]
        page.click("#grid-clear")
        page.set("#grid-sort", "probability-down")
        order = [int(n) - 1 for n in page.texts(".rows td.row")]
        p = [results[i]["probability"] for i in order]
        assert len(order) == 50
        assert p == pytest.approx(sorted((r["probability"] for r in results), reverse=True)[:50], abs=1e-5)
        page.click("th.probability button")
        assert page.run("document.querySelector('th.probability').getAttribute('aria-sort')") == "ascending"
        page.click("th.row button")
        page.click(".pager button:last-child")
        assert page.texts(".rows td.row")[0] == "51"
        declined = said.count(None)
        page.set("#grid-show", "declined")
        assert page.text("#grid .small[role=status]") == f"{declined} of 60 rows"

    def test_pause_go_on_cancel(self, page, served, tmp_path):
        texts = [f"第{i}条" for i in range(100)]
        data = tmp_path / "p.txt"
        data.write_text("\n".join(texts), encoding="utf-8")
        page.drop_file(data)
        page.wait("document.querySelector('#start')")
        served.faults.gate.clear()
        page.click("#start")
        wait_until(lambda: len(served.faults.bodies) == 2, "two pieces are on their way")
        page.drop_file(data)
        page.wait("document.querySelector('#notice p')")
        assert page.text("#notice p") == "A file is being classified: let it finish, or cancel it first."
        page.click("#pause")
        assert page.text(".job h2") == "Paused"
        served.faults.gate.set()
        page.wait("document.querySelector('#grid .counts')")
        page.run("new Promise((done) => setTimeout(done, 200))")
        assert len(served.faults.bodies) == 2, "nothing is sent while paused"
        done = sum(len(body["texts"]) for body in served.faults.bodies)
        page.wait(f"document.querySelector('#job-line').textContent.startsWith('{done} of 100')")
        served.faults.gate.clear()
        page.click("#pause")
        wait_until(lambda: len(served.faults.bodies) == 4, "it goes on")
        page.click("#cancel")
        assert page.text(".job h2") == "Cancelled"
        served.faults.gate.set()
        page.set("#grid-show", "open")
        assert page.text("#grid .small[role=status]") == f"{100 - done} of 100 rows"
        saved = page.saved("#save-csv", tmp_path / "out").read_text("utf-8-sig").splitlines()
        assert len(saved) == 101
        assert sum(line.endswith(",not classified") for line in saved) == 100 - done
        page.click("#again")
        page.classify_file()
        assert page.text("#job-line").startswith("100 of 100")

    def test_every_row_once_with_a_busy_server(self, page, served, tmp_path):
        texts = [f"第{i}条 国足" for i in range(60)]
        data = tmp_path / "b.txt"
        data.write_text("\n".join(texts), encoding="utf-8")
        busy = (
            429,
            {"Retry-After": "1"},
            {"error": {"message": "m", "type": "t", "param": None, "code": "queue_full"}},
        )
        served.faults.errors = [busy] * 5
        page.drop_file(data)
        page.wait("document.querySelector('#start')")
        page.click("#start")
        page.wait("document.querySelector('.job .note')?.textContent === 'The server is busy. Trying again in 1 s.'")
        page.wait("document.querySelector('.job h2').textContent === 'Done'")
        saved = page.saved("#save-jsonl", tmp_path / "out").read_text("utf-8").split("\n")[:-1]
        found = [json.loads(line) for line in saved]
        assert [row["text"] for row in found] == texts
        assert [row["label"] for row in found] == [r["label"] for r in answers(served, texts)]
        sent = [t for body in served.faults.bodies[5:] for t in body.get("texts", [])]
        assert sorted(sent[: len(texts)]) == sorted(texts), "asked again for what was refused, and for nothing twice"
        first, *_, last = served.faults.times[:6]
        assert last - first > 0.95, "it waited as long as it was told"

    def test_one_bad_row_harms_no_other(self, page, served, tmp_path):
        texts = [f"第{i}条" for i in range(40)]
        texts[21] = "长" * 1_000_001
        data = tmp_path / "bad.csv"
        data.write_text("text\n" + "\n".join(texts) + "\n", encoding="utf-8")
        page.drop_file(data)
        page.classify_file()
        assert "1 failed" in page.text("#job-line")
        assert "39" in page.text("#job-line") or "40 of 40" in page.text("#job-line")
        page.set("#grid-show", "failed")
        assert page.texts(".rows td.row") == ["22"]
        assert "than the server takes" in page.text(".rows td.label")
        page.click("#language")
        assert "超过服务器" in page.text(".rows td.label")

    def test_a_fault_of_the_request_stops_it(self, page, served, tmp_path):
        gone = (404, {}, {"error": {"message": f"{EVIL}", "type": "t", "param": "model", "code": "model_not_found"}})
        served.faults.errors = [gone, gone]
        data = tmp_path / "s.txt"
        data.write_text("国足\n" * 50, encoding="utf-8")
        page.drop_file(data)
        page.wait("document.querySelector('#start')")
        page.click("#start")
        page.wait("document.querySelector('.job h2')?.textContent === 'Stopped'")
        assert page.text(".job .note p").startswith("This classifier is no longer served.")
        served.faults.errors = []
        page.click("#pause")
        page.wait("document.querySelector('.job h2')?.textContent === 'Done'")
        assert page.text("#job-line").startswith("50 of 50")

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [("a.parquet", b"PAR1", "“.parquet” cannot be read here."), ("a.csv", b"", "The file has no rows."),
         ("a.csv", b'text\n"open', "A quotation mark that opens a field after row 1 is never closed."),
         ("a.json", b"{", "The file is no JSON"), ("a.jsonl", b"x\ny\n", "The file is no JSON"),
         ("a.txt", bytes(range(256)) * 9, "The encoding of this file was not recognised."),
         ("a.csv", b"\0\0\0\0", "This is no text file.")],
    )  # fmt: skip
    def test_files_that_are_none(self, page, served, tmp_path, name, content, said):
        data = tmp_path / name
        data.write_bytes(content)
        page.drop_file(data)
        page.wait("document.querySelector('#notice p')")
        assert page.text("#notice p").startswith(said)
        page.click("#language")
        assert not page.text("#notice p").startswith(said)
        good = tmp_path / "good.txt"
        good.write_text("国足", encoding="utf-8")
        page.drop_file(good)
        page.wait("document.querySelector('#start')")
        assert page.text("#notice p") is None


class TestParsing:
    @pytest.mark.parametrize(
        "text",
        ["a,b\n1,2\n", "a,b,\n1,,\n", 'a\r\n"x, ""y""\r\nz"\r\n',
         'a\n""\nb', "a\rb\rc", '"q"x,1\n', 'a"b,c\n', "a", "，,。\n"],
    )  # fmt: skip
    def test_csv_as_python_reads_it(self, page, text):
        found = by_module(page, f"m.csvRecords({json.dumps(text)})", "parse")
        assert found == {"records": [row for row in csv.reader(text.splitlines(keepends=True)) if row], "open": False}

    def test_what_is_written_is_what_is_read(self, page):
        rows = [["a", ' "', ",", "a\n", "b\r\nc", "", " x ", "“”", "中文；", "12", "-1.5e3", "x=1"]]
        found = by_module(page, f"m.csvRecords({json.dumps(rows)}[0].map(m.csvField).join(','))", "parse", "download")
        assert found["records"] == rows

    @pytest.mark.parametrize("cell", ["=1", "+a", "-a", "@a", "\t=1", "\r=1", "＝1", "-1+cmd|' /C calc'!A0", "+1-1"])
    def test_formulas(self, page, cell):
        assert by_module(page, f"m.safe({json.dumps(cell)})", "download") == f"'{cell}"

    @pytest.mark.parametrize("cell", ["1", "-1", "+1.5", "-1e-5", "a=1", "", "体育"])
    def test_no_formulas(self, page, cell):
        assert by_module(page, f"m.safe({json.dumps(cell)})", "download") == cell

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be"])
    def test_encodings(self, page, encoding):
        text = "text,标签\n国足今晚迎战韩国队,体育\n镕𠮷,a\n"
        given = list(text.encode(encoding))
        found = by_module(page, f"m.decode(new Uint8Array({given}))", "decode")
        assert (found["text"], found["damaged"]) == (text, False)
        assert found["encoding"].replace("-", "").startswith(encoding.replace("-", "").removesuffix("sig"))

    def test_a_damaged_utf8_file_is_not_taken_for_gb18030(self, page):
        given = list("国足今晚迎战韩国队".encode() + b"\xff\xfe")
        found = by_module(page, f"m.decode(new Uint8Array({given}))", "decode")
        assert (found["encoding"], found["damaged"]) == ("utf-8", True)
        assert found["text"].startswith("国足今晚迎战韩国队")

    @pytest.mark.parametrize(
        ("name", "text", "columns", "rows"),
        [("a.jsonl", '{"b": 1}\n\n["x"]\n{"text": "t"}', ["b", "text"], 2),
         ("a.json", '{"data": ["x", {"k": null}]}', ["text", "k"], 2),
         ("a.json", '{"text": "x"}\n{"text": "y"}', ["text"], 2),
         ("a.tsv", 'a\tb\n"x\t1\ny"z\t2\n"\t3', ["a", "b"], 3), ("a.tsv", 'a\tb\n"x\n"\t1', ["a", "b"], 1),
         ("a.csv", "a,a,\n1,2,3,4", ["a", "a_2", "column_3", "column_4"], 1), ("a.txt", "x\r\n\n y ", ["text"], 2)],
    )  # fmt: skip
    def test_tables(self, page, name, text, columns, rows):
        found = by_module(page, f"m.parse({json.dumps(text)}, m.kindOf({json.dumps(name)}))", "parse")
        assert (found["columns"], len(found["rows"])) == (columns, rows)

    @pytest.mark.parametrize(("columns", "best"), [(["id", "Text "], 1), (["title", "内容"], 0), (["a", "b"], 1)])
    def test_the_column_with_the_text(self, page, columns, best):
        rows = [["x", "longer than that"]]
        assert by_module(page, f"m.textColumn({json.dumps(columns)}, {json.dumps(rows)})", "parse") == best

    def test_waiting_times_of_a_server(self, page):
        found = by_module(
            page,
            "['3', ' 1.5', 'Wed, 21 Oct 2015 07:28:10 GMT', 'soon', null].map((h) => m.seconds(h, 1445412480000))",
            "api",
        )
        assert found == [3, 1.5, 10, None, None]
