"""Measuring: our layers beside every peer and beside the machine's limit, in one run.

From below: `timing` takes turns, `limits` and `machine` tell what the machine can do and who else
used it, `workloads` and `peers` make the calls that are timed, `measuring` runs them into the rows
of `results`; `tables`, `targets`, `plots`, `scaling` and `comparison` read those. The command
``seq2seq-ext bench`` stands on it, and the developers' benchmarks share its workloads.
"""
