"""Rules of single benchmarks, as their official programs have them."""
