"""What came out of a run: records, verdict, summary, report. Reads records only; imports neither torch nor transformers."""
