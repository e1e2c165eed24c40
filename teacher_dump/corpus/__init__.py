"""Corpus files -> records -> split -> pieces -> rows: what `prepare` does before a shard is written."""
