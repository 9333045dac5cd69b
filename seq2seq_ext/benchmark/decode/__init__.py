"""Decoding timed beside a batched search in plain torch: `seq2seq-ext bench --decode`.

`models` makes what is decoded, `peer` is the other implementation, `measuring` lets both take turns
over the same sentences and compares what they write, `tables` tells. `g2p_en` does the same with a
trained model and its own decoder, `numpy_g2p`.
"""
