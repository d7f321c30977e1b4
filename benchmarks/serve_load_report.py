"""From single answers to the figures of the load benchmark, and the report as Markdown."""

from __future__ import annotations

import collections
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from serve_load_client import Answer

_BLOCKS = 30
# of the beginning of a soak: buffers and caches fill
_SETTLING = 0.2
_FLAT = 0.01  # of the memory, an hour; and of the memory, from the first blocks to the last ones
_EDGE = 3  # blocks at the beginning, and at the end
# of the memory: how far it may rise above its beginning at any moment; buffers come and go
_RISE = 0.05
# of the time in which requests come: until passes are as full as the load makes them, nothing is counted
_LEAD_IN = 1 / 3


def summarize(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The figures of one load.

    Args:
        answers: of all requests that were due within ``seconds``.
        seconds: how long requests came.
    """
    begin = min((a.due for a in answers), default=0.0)
    good = [a for a in answers if a.good]
    late = [a.sent - a.due for a in answers]
    counts = collections.Counter(f"{a.status} {a.code}".strip() for a in answers)
    return {
        "seconds": seconds,
        "sent": len(answers),
        "offered": len(answers) / seconds,
        "accepted": len(good),
        "statuses": dict(sorted(counts.items())),
        "texts_per_second": _throughput([(a.ended - begin, a.texts) for a in good], seconds),
        "latency": quantiles([a.seconds for a in good]),
        "refusal_latency": quantiles([a.seconds for a in answers if a.status in (429, 503)]),
        "retry_after": quantiles([a.retry_after for a in answers if a.retry_after is not None]),
        "client_late": quantiles(late),
        "unavailable": sum(a.status == 503 for a in answers),
        "server_errors": sum(a.status >= 500 and a.status != 503 for a in answers),
        "without_answer": sum(a.status == 0 for a in answers),
    }


def _throughput(ends: Sequence[tuple[float, int]], seconds: float) -> float:
    """Texts a second, from one answer under load to another.

    From the first arrival on, those still open at the end would be missing, a whole pass of the model. And many are
    answered at once: a window that begins and ends at any moment holds one pass more or less, of four or six in all.

    Args:
        ends: (when it was answered, in seconds after the first arrival; its texts) each.
        seconds: how long requests came.
    """
    times = sorted(end for end, _ in ends if end <= seconds)
    if not times:
        return 0.0
    lead_in = _LEAD_IN * seconds
    first = max((end for end in times if end <= lead_in), default=lead_in)
    # a server that stops answering is not to look as if the time had ended there
    longest = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    last = times[-1] if seconds - times[-1] <= 2 * longest else seconds
    return sum(texts for end, texts in ends if first < end <= last) / (last - first) if last > first else 0.0


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95 %, 99 % and the largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": ordered[-1]}


def flatness(samples: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Whether memory stays what it is: its slope with a 95 % bound, where it ends, and how high it rises.

    The beginning is left out. Samples a second apart are nearly the same measurement, so the slope is taken over
    means of blocks (Theil-Sen, which a few outliers do not move), and its bound is that of the blocks. Growth late in
    a soak is few blocks too, so it is also asked how far the last ones are above the first ones, and how far the
    largest sample is above the largest one of the first blocks.

    Args:
        samples: (seconds, bytes).
    """
    from scipy.stats import theilslopes

    end = samples[-1][0] if samples else 0.0
    kept = [(t, size) for t, size in samples if t >= _SETTLING * end]
    if len(kept) < _BLOCKS:
        return {"samples": len(kept), "verdict": "too short to say"}
    cuts = [i * len(kept) // _BLOCKS for i in range(_BLOCKS + 1)]
    blocks = [kept[a:b] for a, b in itertools.pairwise(cuts)]
    times = [statistics.fmean(t for t, _ in block) for block in blocks]
    sizes = [statistics.fmean(size for _, size in block) for block in blocks]
    slope, _, low, high = theilslopes(sizes, times, alpha=0.95)
    size = statistics.fmean(sizes)
    an_hour = {"slope": 3600 * float(slope), "low": 3600 * float(low), "high": 3600 * float(high)}
    first, last = statistics.fmean(sizes[:_EDGE]), statistics.fmean(sizes[-_EDGE:])
    largest, largest_first = (max(size for _, size in part) for part in (kept, kept[: cuts[_EDGE]]))
    if an_hour["low"] > _FLAT * size:
        verdict = "grows"
    elif last - first > _FLAT * first:
        verdict = "not flat: larger at the end"
    elif largest - largest_first > _RISE * first:
        verdict = "not flat: much larger for a time"
    elif an_hour["high"] > _FLAT * size:
        verdict = "not known: it may grow, soak longer"
    else:
        verdict = "flat"
    return {
        "samples": len(kept),
        "bytes": size,
        "first": first,
        "last": last,
        "largest": largest,
        "bytes_per_hour": an_hour,
        "verdict": verdict,
    }


def rates(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians of what was measured in turn, and of the ratios within each round."""
    names = rounds[0].keys()
    found: dict[str, Any] = {name: statistics.median(r[name] for r in rounds) for name in names}
    for name in ("serve", "open"):
        found[f"{name}_of_predict"] = statistics.median(r[name] / r["predict"] for r in rounds)
    found["serve_of_one"] = statistics.median(r["serve"] / r["one"] for r in rounds)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The report."""
    lines = [f"### {result['about']}", ""]
    for part in (_rates, _levels, _soak, _sigterm):
        lines += part(result)
    return "\n".join(lines).rstrip() + "\n"


def _rates(result: dict[str, Any]) -> list[str]:
    if "rates" not in result:
        return []
    found, count = result["rates"], len(result["rounds"])
    return [
        "| | texts/s | of `fenlei predict` |",
        "|---|---:|---:|",
        f"| `fenlei predict`, the same rows | {found['predict']:.3g} | 1.00 |",
        f"| `fenlei serve`, {result['in_flight']} requests of {_texts(result)} in flight | {found['serve']:.3g} "
        f"| {found['serve_of_predict']:.2f} |",
        f"| `fenlei serve`, open loop at 1 x | {found['open']:.3g} | {found['open_of_predict']:.2f} |",
        f"| `fenlei serve`, one request in flight | {found['one']:.3g} "
        f"| {found['serve_of_predict'] / found['serve_of_one']:.2f} |",
        "",
        f"Medians of {count} rounds, in which these take turns; ratios within a round ("
        + "; ".join(
            f"{words} " + ", ".join(f"{r[name] / r['predict']:.2f}" for r in result["rounds"])
            for name, words in (("serve", "in flight"), ("open", "open loop"))
        )
        + "). Batching makes "
        f"{found['serve_of_one']:.1f} times as much of the model as one request at a time.",
        "",
    ]


def _levels(result: dict[str, Any]) -> list[str]:
    if not result.get("levels"):
        return []
    lines = [
        "| load | requests/s | sent | accepted | texts/s | of `fenlei predict` | p50 s | p95 s | p99 s | statuses "
        "| server RSS, GB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for level in result["levels"]:
        latency = level["latency"] or dict.fromkeys(("p50", "p95", "p99"), math.nan)
        statuses = ", ".join(f"{count} x {name}" for name, count in level["statuses"].items())
        lines.append(
            f"| {level['multiple']:g} x | {level['offered']:.3g} | {level['sent']} | {level['accepted']} "
            f"| {level['texts_per_second']:.3g} | {_share(level, result)} "
            f"| {latency['p50']:.3f} | {latency['p95']:.3f} | {latency['p99']:.3f} "
            f"| {statuses} | {level['memory_largest'] / 1e9:.2f} |"
        )
    late = max((level["client_late"]["p99"] for level in result["levels"] if level["client_late"]), default=0.0)
    lines += [
        "",
        f"- Poisson arrivals for {result['levels'][0]['seconds']:g} s a load; texts/s are those of the last two thirds "
        f"of that time, and their share is that of the rounds' median; latency of accepted requests, from the moment "
        f"at which they were due. The client itself was at most {late:.3f} s late (p99).",
        f"- Server errors other than 503: {sum(level['server_errors'] for level in result['levels'])}; without an "
        f"answer: {sum(level['without_answer'] for level in result['levels'])}.",
    ]
    lines += [_recovery(level["multiple"], **level["recovery"]) for level in result["levels"] if level["recovery"]]
    return [*lines, ""]


def _share(load: dict[str, Any], result: dict[str, Any]) -> str:
    """Its texts a second over those of prediction; empty where those were not measured."""
    return f"{load['texts_per_second'] / result['rates']['predict']:.2f}" if "rates" in result else ""


def _recovery(multiple: float, seconds: float | None, patience: float) -> str:
    after, so = "after the last arrival", "as fast as without load (within three times the median at the lowest load)."
    if seconds is None:
        return f"- {multiple:g} x: did not recover; in {patience:g} s {after} no request was answered {so}"
    return f"- {multiple:g} x: {seconds:.1f} s {after} a request was answered {so}"


def _soak(result: dict[str, Any]) -> list[str]:
    if "soak" not in result:
        return []
    soak, memory = result["soak"], result["soak"]["memory"]
    share = f", {found} of `fenlei predict`" if (found := _share(soak, result)) else ""
    lines = [f"Soak: {soak['minutes']:g} minutes at {soak['offered']:.3g} requests/s, {soak['sent']} requests, "
             f"{soak['accepted']} accepted, {soak['unavailable']} x 503, {soak['server_errors']} other server errors, "
             f"{soak['without_answer']} without an answer, {soak['texts_per_second']:.3g} texts/s{share}. "
             f"Memory: {memory['verdict']}"]  # fmt: skip
    if "bytes_per_hour" in memory:
        slope = memory["bytes_per_hour"]
        lines[0] += (
            f"; first {memory['first'] / 1e9:.3f} GB, last {memory['last'] / 1e9:.3f} GB, largest "
            f"{memory['largest'] / 1e9:.3f} GB, slope {slope['slope'] / 1e6:+.2f} MB an hour "
            f"(95 %: {slope['low'] / 1e6:+.2f} to {slope['high'] / 1e6:+.2f})"
        )
    return [f"{lines[0]}.", ""]


def _sigterm(result: dict[str, Any]) -> list[str]:
    if "sigterm" not in result:
        return []
    end = result["sigterm"]
    return [
        f"SIGTERM with {end['in_flight']} requests in flight: {end['answered']} answered, {end['lost']} lost; "
        f"readiness {end['ready']}, new requests {end['new']}; exit code {end['exit_code']} after "
        f"{end['seconds']:.1f} s.",
        "",
    ]


def _texts(result: dict[str, Any]) -> str:
    count = result["texts_a_request"]
    return "one text" if count == 1 else f"{count} texts"
