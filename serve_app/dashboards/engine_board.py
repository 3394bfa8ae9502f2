"""The board of the engines and of batch work: KV caches, batches, steps, prefix hits, background requests and jobs."""

from __future__ import annotations

from cluster.metric_catalogue import CATALOGUE as M
from serve_app.dashboards.panel import Board, Row, panel, query
from serve_app.dashboards.promql import rate, series, share, total

KV = Row(
    title="KV cache",
    panels=(
        panel(
            "KV cache in use",
            "percentunit",
            "Token slots that running sequences hold, of all.",
            query(f"{series(M.kv_used)} / {series(M.kv_capacity)}", "{{variant}} {{replica}}"),
        ),
        panel(
            "KV tokens",
            "short",
            "Held by sequences, kept for prefixes that may come again, and in all.",
            query(total(series(M.kv_used), "variant"), "{{variant}} used"),
            query(total(series(M.kv_cached), "variant"), "{{variant}} cached"),
            query(total(series(M.kv_capacity), "variant"), "{{variant}} in all"),
        ),
        panel(
            "What paging saves",
            "short",
            "Slots that admitted requests may still come to need: with room reserved for the longest answer they would"
            " be held already.",
            query(total(series(M.kv_promised), "variant"), "{{variant}}"),
        ),
    ),
)
STEPS = Row(
    title="Steps",
    panels=(
        panel(
            "Mean batch",
            "short",
            "Sequences in a step.",
            query(
                share(total(rate(M.step_sequences), "variant"), total(rate(M.steps), "variant")),
                "{{variant}}",
            ),
        ),
        panel(
            "Mean step time",
            "s",
            "Busy seconds by steps.",
            query(share(total(rate(M.busy_seconds), "variant"), total(rate(M.steps), "variant")), "{{variant}}"),
        ),
        panel(
            "Busy share",
            "percentunit",
            "Of the time, with a step under way.",
            query(rate(M.busy_seconds), "{{variant}} {{replica}}"),
        ),
        panel(
            "Decoding and waiting",
            "short",
            "Sequences that decode, requests in the waiting room, and prompts' tokens that are to be computed.",
            query(total(series(M.decoding), "variant"), "{{variant}} decoding"),
            query(total(series(M.queued), "variant"), "{{variant}} waiting"),
            query(total(series(M.prefill_waiting), "variant"), "{{variant}} prompt tokens waiting"),
        ),
        panel(
            "Tokens",
            "short",
            "A second: generated, and of prompts, computed or given by the prefix cache.",
            query(total(rate(M.decoded_tokens), "variant"), "{{variant}} generated"),
            query(total(rate(M.computed_tokens), "variant"), "{{variant}} prompts, computed"),
            query(total(rate(M.cached_tokens), "variant"), "{{variant}} prompts, cached"),
        ),
        panel(
            "Preemptions",
            "short",
            "A second: sequences that lost their blocks and were computed again.",
            query(total(rate(M.preemptions), "variant"), "{{variant}}"),
        ),
        panel(
            "Engine memory on the host",
            "bytes",
            "Resident memory of engine processes.",
            query(series(M.engine_memory), "{{variant}} {{replica}}"),
            width=24,
        ),
    ),
)
BATCH = Row(
    title="Batch work",
    panels=(
        panel(
            "Background sequences",
            "short",
            "Running on what online requests leave of the steps.",
            query(total(series(M.background), "variant"), "{{variant}}"),
        ),
        panel(
            "Background requests on the fleet",
            "reqps",
            "Rows of jobs with --share-fleet and of OpenAI batches, answered.",
            query(total(rate(M.served, slo_class="background"), "variant"), "{{variant}}"),
        ),
        panel(
            "Background tokens on the fleet",
            "short",
            "Generated a second.",
            query(total(rate(M.generated_tokens, slo_class="background"), "variant"), "{{variant}}"),
        ),
        panel(
            "Rows of jobs",
            "short",
            "A second, of jobs in a scraped Ray cluster, by how they ended.",
            query(total(rate(M.job_rows), "variant", "outcome"), "{{variant}} {{outcome}}"),
            width=12,
        ),
        panel(
            "Tokens of jobs",
            "short",
            "A second, of prompts and generated.",
            query(total(rate(M.job_tokens), "variant", "kind"), "{{variant}} {{kind}}"),
            width=12,
        ),
    ),
)
ENGINE = Board(
    uid="quantfleet-engine",
    title="quantfleet: engine and batch",
    description="KV caches, batches and steps of the engines; background work and jobs.",
    rows=(KV, STEPS, BATCH),
)
