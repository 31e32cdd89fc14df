"""Rows on disk or on the hub -> Samples whose privileged view only the teacher side sees."""
