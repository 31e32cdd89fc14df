"""Row files: JSON lines, Parquet, tar shards."""
