"""What came out of a run: records, verdict, summary, report.

Reads records only and imports neither torch nor transformers: a report can be rendered on a laptop.
"""
