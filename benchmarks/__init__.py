"""Scripts that measure; never collected by pytest. `make bench` rewrites RESULTS.md."""
