"""A logged decision in words: what was seen, what follows from it, what was done; it decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from autoscaling.decision_log import Entry
from cluster.errors import UserError


def headline(entry: Entry) -> str:
    """One line: time, what runs and what is wanted."""
    running = Counter(load.variant for load in entry.observation.loads)
    return f"{entry.time}  {_counts(running)} running -> {_counts(entry.decision.replicas)}  {_verb(entry)}"


def changes(entries: Iterable[Entry]) -> Iterator[str]:
    """The first decision, and each that wants another fleet than the one before."""
    wanted: Mapping[str, int] | None = None
    for entry in entries:
        if entry.decision.replicas != wanted:
            yield headline(entry)
            wanted = entry.decision.replicas


def in_force(entries: Iterable[Entry], at: str) -> Entry:
    """The last decision up to a time, as ISO 8601 has it; UTC where it names no zone."""
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise UserError(f"--at {at!r}: not a time; give one such as '2026-11-22 14:05:00', in UTC") from None
    limit_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    found: Entry | None = None
    first: Entry | None = None
    for entry in entries:
        first = first or entry
        if entry.at_s <= limit_s:
            found = entry
    if first is None:
        raise UserError("the log holds no decision yet")
    if found is None:
        raise UserError(f"--at {at!r}: before the first decision, {first.time}")
    return found


def explain(entry: Entry) -> str:
    seen = entry.observation
    lines = [headline(entry)]
    for traffic in seen.traffic:
        if traffic.arrivals or traffic.refused:
            mean = traffic.prompt_tokens / traffic.arrivals if traffic.arrivals else 0.0
            lines.append(
                f"  {traffic.slo_class}: {traffic.arrivals} requests arrived in {traffic.window_s:.0f} s"
                f" ({mean:.0f} prompt tokens each), {traffic.finished} ended, {traffic.refused} refused"
            )
        if traffic.waiting:
            lines.append(f"  {traffic.slo_class}: {traffic.waiting} requests wait in the ingresses")
    for load in seen.loads:
        lines.append(
            f"  {load.replica_id} ({load.variant}): {load.decode_sequences} decoding, {load.waiting_requests} waiting,"
            f" {load.kv_tokens_used} of {load.kv_tokens_capacity} KV tokens"
        )
    starting = {name: len(since) for name, since in seen.starting.items() if since}
    if starting:
        lines.append(f"  starting: {_counts(starting)}")
    if any(seen.draining.values()):
        lines.append(f"  draining: {_counts(seen.draining)}")
    for name, named_s in sorted(seen.named_s.items()):
        lines.append(f"  {name} was last named by a request {seen.now_s - named_s:.0f} s before")
    lines += [f"  {part}" for part in entry.decision.reason.split("; ")]
    for name, shares in sorted(entry.decision.shares.items()):
        parts = ", ".join(f"{share:.0%} to {variant}" for variant, share in sorted(shares.items()))
        lines.append(f"  {name} is sent {parts}")
    return "\n".join(lines)


def _verb(entry: Entry) -> str:
    return entry.decision.reason.split(":", 1)[0]


def _counts(replicas: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(replicas.items()) if count) or "none"
