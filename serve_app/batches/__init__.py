"""OpenAI's Batch API: files and batches over HTTP, on disk, run by the same job code as `quantfleet generate`."""
