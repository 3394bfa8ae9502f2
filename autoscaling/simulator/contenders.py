"""Fleets to compare on the same traffic, by a text such as mixed:kv-aware,bf16:ongoing-requests; it runs none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autoscaling.simulator.comparison import POLICIES, PolicyName
from cluster.errors import UserError, did_you_mean

MIXED = "mixed"
EXAMPLE = "mixed:kv-aware,bf16:ongoing-requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    name: str
    """In reports, and its folder's."""
    variants: tuple[str, ...]
    policy: PolicyName


def parse_contenders(text: str, variants: Iterable[str]) -> list[Contender]:
    """`mixed` stands for all variants, bf16+int4 for these; UserError for what names none."""
    known = tuple(variants)
    contenders = [_contender(part.strip(), known) for part in text.split(",")]
    names = [each.name for each in contenders]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--fleets: {twice} is there twice; name each fleet and policy once")
    return contenders


def policy_named(name: str, option: str) -> PolicyName:
    for policy in POLICIES:
        if policy == name:
            return policy
    raise UserError(f"{option}: no policy {name!r}; {did_you_mean(name, POLICIES)}")


def _contender(part: str, known: tuple[str, ...]) -> Contender:
    fleet, colon, policy = part.partition(":")
    if not colon:
        raise UserError(f"--fleets: {part!r} names no policy; write variants and policy, such as {EXAMPLE}")
    chosen = policy_named(policy, "--fleets")
    if chosen == "fixed":
        raise UserError(f"--fleets: {part!r}: how many replicas are fixed? Use --policy fixed with --replicas")
    names = known if fleet == MIXED else tuple(fleet.split("+"))
    for name in names:
        if name not in known:
            raise UserError(f"--fleets: no variant {name!r}; {did_you_mean(name, (*known, MIXED))}")
    return Contender(name=f"{fleet}-{policy}", variants=names, policy=chosen)
