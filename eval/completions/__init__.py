"""Questions to completions: requests, generators, endpoint, store."""
