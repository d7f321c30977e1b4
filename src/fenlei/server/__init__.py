"""HTTP API, batcher, limits and the playground page. Needs the extra ``serve``."""
