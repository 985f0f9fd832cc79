"""Many runs: launchers, the ledger of a sweep, summaries, charts."""
