# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {name: python3, display_name: Python 3, language: python}
# ---

# %% [markdown]
# # 1. The context as the decoder's initial state
#
# An encoder reads a string, letter by letter, into a vector of fixed size. A decoder starts from
# that vector and writes a string, letter by letter (Sutskever, Vinyals & Le 2014,
# [arXiv:1409.3215](https://arxiv.org/abs/1409.3215)). The task of these lessons is the plainest
# there is: write the string again. Nothing has to be understood, everything has to be remembered.
#
# The layers are `seq2seq_ext`'s, with `torch.nn`'s arguments; everything else is written out.

# %%
import argparse
import sys

import lesson
import torch
from lesson import BOS, EOS, LONGEST, VOCABULARY_SIZE
from torch import Tensor, nn

import seq2seq_ext as s2s

parser = argparse.ArgumentParser(description="The context as the decoder's initial state.")
parser.add_argument("--steps", type=int, default=1500, help="of training")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
torch.manual_seed(0)
torch.set_num_threads(1)  # layers this small are fastest so

source, lengths, target = lesson.strings(3, seed=0)
for row, length in zip(source.tolist(), lengths.tolist(), strict=True):
    print(lesson.text(row[:length]), row[:length])

# %% [markdown]
# ## The encoder
#
# Strings have different lengths. `lengths=` tells the layer where each ends, so that its last state
# is that of the last letter and not of the padding.


# %%
class Encoder(nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY_SIZE, 32, padding_idx=0)
        self.rnn = s2s.GRU(32, size, batch_first=True)

    def forward(self, source: Tensor, lengths: Tensor) -> Tensor:
        _, h_n = self.rnn(self.embedding(source), lengths=lengths)
        return h_n  # (1, B, size): the context


# %% [markdown]
# ## The decoder
#
# It reads the letter that was written before, and scores the next one. In training the letters
# before are the right ones (*teacher forcing*), so that all steps are one call of the layer. In use
# they are its own.


# %%
class Decoder(nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY_SIZE, 32, padding_idx=0)
        self.rnn = s2s.GRU(32, size, batch_first=True)
        self.output = nn.Linear(size, VOCABULARY_SIZE)

    def forward(self, inputs: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        z, h = self.rnn(self.embedding(inputs), h)
        return self.output(z), h


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, source: Tensor, lengths: Tensor, inputs: Tensor) -> Tensor:
        logits, _ = self.decoder(inputs, self.encoder(source, lengths))
        return logits

    @torch.no_grad()
    def write(self, source: Tensor, lengths: Tensor) -> Tensor:
        h = self.encoder(source, lengths)
        token = torch.full((len(source), 1), BOS)
        written, ended = [], torch.zeros(len(source), 1, dtype=torch.bool)
        for _ in range(LONGEST + 1):
            logits, h = self.decoder(token, h)
            token = logits.argmax(-1).masked_fill(ended, 0)
            written.append(token)
            ended = ended | (token == EOS)
        return torch.cat(written, 1)


model = Model()
losses = lesson.train(model, steps=options.steps)

# %% [markdown]
# ## What it has learned
#
# Short strings are copied without a mistake. The longer the string, the more often one goes wrong:
# all of it has to fit into 64 numbers, and stay there while the decoder writes.

# %%
buckets = lesson.accuracy_by_length(model.write)
for row, length, ids in zip(source, lengths, model.write(source, lengths).tolist(), strict=True):
    print(f"{lesson.text(row[:length].tolist())} -> {lesson.text(ids)}")
lesson.keep("initial state", losses, buckets)
lesson.figures(["initial state"], "1")

# %% [markdown]
# ## The same model from the toolkit
#
# A config describes it, and `generate` searches with beams, samples and constraints. With the same
# weights it gives the same logits.

# %%
config = s2s.Seq2SeqConfig(
    source_vocab_size=VOCABULARY_SIZE,
    target_vocab_size=VOCABULARY_SIZE,
    source_embedding_size=32,
    target_embedding_size=32,
    encoder_hidden_size=64,
    decoder_hidden_size=64,
)
toolkit = s2s.Seq2Seq(config).eval()
toolkit.load_state_dict(
    {name.replace(".rnn.", ".stack.rnn."): w for name, w in model.state_dict().items()}
)
with torch.no_grad():
    theirs = toolkit(source, target, lengths).logits
    ours = model(source, lengths, lesson.shifted(target))
inside = target != 0
assert torch.allclose(theirs[inside], ours[inside], atol=1e-4)
for ids in toolkit.generate(source, lengths, num_beams=4, max_new_tokens=LONGEST + 1).tolist():
    print(lesson.text(ids))
