"""How the page asks for many texts in pieces: its module alone, in the browser, against servers that are functions."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

# asks for rows t0, t1, ... and says what came of them; `draw` gives numbers in [0, 1), the same ones for a seed
_SCRIPT = """
(async () => {
  const [{ Job }, { Problem }] = await Promise.all([import("/assets/job.js"), import("/assets/api.js")]);
  let [seed, open, refused, calls] = [SEED, 0, 0, 0];
  const draw = () => (seed = (seed * 1103515245 + 12345) % 2 ** 31) / 2 ** 31;
  const rest = (ms) => new Promise((done) => setTimeout(done, ms));
  const fail = (kind, more) => { refused += 1; throw new Problem(kind, more); };
  const texts = Array.from({ length: COUNT }, (_, i) => (i % 13 === 5 ? null : `t${i}`));
  const answer = (asked) => asked.map((text) => ({ label: text }));
  const ask = async (asked) => { calls += 1; SERVER };
  const job = new Job(texts, ask, () => {});
  const running = job.run();
  MEANWHILE;
  await running;
  const right = [...job.results].map((r, i) => (r === undefined ? "open" : r.empty ? (texts[i] === null ? "empty" : "?")
    : r.problem ? `failed ${texts[i]}` : r.label === texts[i] ? "right" : "wrong"));
  const counts = {};
  for (const word of right) counts[word] = (counts[word] || 0) + 1;
  return { state: job.state, counts, refused, calls, done: job.done };
})()
"""


def asked(page, server: str, *, count: int = 100, meanwhile: str = "", seed: int = 1):
    """What came of a job of so many rows, a thirteenth of which have no text."""
    values = {"SERVER": server, "MEANWHILE": meanwhile, "SEED": str(seed), "COUNT": str(count)}
    script = _SCRIPT
    for name, value in values.items():
        script = script.replace(name, value)
    return page.run(script)


def test_a_server_with_room_for_one_request_is_not_pressed(page):
    """The second piece on its way was refused once; it is not tried again and again, and pieces do not shrink."""
    server = 'if (open) fail("busy", { retryAfter: 600 }); open += 1; await rest(10); open -= 1; return answer(asked)'
    found = asked(page, server)
    assert (found["state"], found["counts"]) == ("done", {"right": 92, "empty": 8})
    assert found["refused"] == 1
    assert found["calls"] <= 8


def test_rows_that_are_refused_are_found_by_halving(page):
    server = 'if (asked.includes("t17") || asked.includes("t90")) fail("bad"); return answer(asked)'
    found = asked(page, server)
    assert found["counts"] == {"right": 90, "empty": 8, "failed t17": 1, "failed t90": 1}
    assert found["calls"] < 40


def test_pieces_that_are_too_large_become_smaller(page):
    found = asked(page, 'if (asked.length > 3) fail("large"); return answer(asked)')
    assert (found["state"], found["counts"]) == ("done", {"right": 92, "empty": 8})
    assert found["calls"] < 60, "a size that was refused is not tried again"


def test_a_server_that_refuses_everything_is_left_alone(page):
    found = asked(page, 'fail("bad")')
    assert found["state"] == "stopped"
    assert set(found["counts"]) <= {"open", "empty"}, "it is not the rows' fault"
    assert found["calls"] < 20


@pytest.mark.parametrize("kind", ["key", "missing", "odd", "forbidden"])
def test_faults_that_patience_does_not_mend_stop_it(page, kind):
    found = asked(page, f"fail({json.dumps(kind)})")
    assert (found["state"], found["calls"] <= 2) == ("stopped", True)


def test_a_fault_of_the_page_itself_is_not_hidden(page):
    with pytest.raises(AssertionError, match="no such thing"):
        asked(page, 'throw new TypeError("no such thing")')


@pytest.mark.parametrize("seed", range(8))
def test_every_row_once_whatever_happens(page, seed):
    """Busy, too large, one bad row, answers out of order, paused and gone on with at any time."""
    server = """
      await rest(4 * draw());
      if (draw() < 0.25) fail("busy", { retryAfter: 0.001 });
      if (asked.length > 20) fail("large");
      if (asked.includes("t77")) fail("bad");
      return answer(asked)
    """
    meanwhile = """
      for (let i = 0; i < 4; i += 1) {
        await rest(12 * draw());
        job.pause();
        await rest(5 * draw());
        job.run();
      }
      while (job.state !== "done") { await rest(5); if (job.state === "stopped") job.run(); }
    """
    found = asked(page, server, count=200, meanwhile=meanwhile, seed=seed)
    assert found["counts"] == {"right": 184, "empty": 15, "failed t77": 1}
    assert found["done"] == 200
