"""Measuring on a GPU: our layers beside `torch.nn`, in every precision, by the device's own clock.

From below: `cudnn` tells which algorithm torch chooses, `shapes` what is measured, `device` holds
all that needs a GPU, `measuring` runs rows within a budget of time, `results` holds them; `tables`
and `plots` read those. Calls, turns and checks are those of the CPU (`seq2seq_ext.benchmark`).
"""
