"""Guidance rules judged by whole chains in the lab's worlds: tables, candidates and figures of docs/lab.md."""
