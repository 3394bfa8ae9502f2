"""One replica's generation loop: text, weights, decoder, paged KV cache, scheduler, process; no Ray and no HTTP."""
