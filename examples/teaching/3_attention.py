# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {name: python3, display_name: Python 3, language: python}
# ---

# %% [markdown]
# # 3. Attention
#
# A vector of fixed size runs out of room. Attention keeps *all* states of the encoder, one a
# letter, and lets the decoder look at them anew for every letter that it writes (Bahdanau, Cho &
# Bengio 2015, [arXiv:1409.0473](https://arxiv.org/abs/1409.0473); here in the form of Luong, Pham &
# Manning 2015, [arXiv:1508.04025](https://arxiv.org/abs/1508.04025)):
#
# $$e_j = \langle z, W m_j \rangle, \quad \alpha = \mathrm{softmax}(e), \quad
# c = \sum_j \alpha_j m_j, \quad a = \tanh(W_c [c; z] + b)$$
#
# of the decoder's state $z$ and the encoder's states $m_j$. The next letter is scored from $a$.

# %%
import argparse
import sys

import lesson
import torch
from lesson import BOS, EOS, LONGEST, VOCABULARY_SIZE
from torch import Tensor, nn

import seq2seq_ext as s2s
from seq2seq_ext.plots import attention_as_png

parser = argparse.ArgumentParser(description="Attention to all states of the encoder.")
parser.add_argument("--steps", type=int, default=1500, help="of training")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# The encoder reads in both directions now, so that each of its states knows what is before a letter
# and what is behind. The decoder's first state is mapped from the last states of both.


# %%
class Encoder(nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY_SIZE, 32, padding_idx=0)
        self.rnn = s2s.GRU(32, size, batch_first=True, bidirectional=True)

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states, h_n = self.rnn(self.embedding(source), lengths=lengths)
        return states, torch.cat([h_n[0], h_n[1]], -1)  # (B, T, 2 size), (B, 2 size)


class Attention(nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.key = nn.Linear(2 * size, size, bias=False)

    def forward(self, z: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        energies = z @ self.key(states).transpose(1, 2)  # (B, steps, T)
        behind = torch.arange(states.size(1)) >= lengths[:, None, None]
        alignments = energies.masked_fill(behind, -torch.inf).softmax(-1)
        return alignments @ states, alignments


class Decoder(nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY_SIZE, 32, padding_idx=0)
        self.rnn = s2s.GRU(32, size, batch_first=True)
        self.attention = Attention(size)
        self.combine = nn.Linear(3 * size, size)
        self.output = nn.Linear(size, VOCABULARY_SIZE)

    def forward(
        self, inputs: Tensor, h: Tensor, states: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, h = self.rnn(self.embedding(inputs), h)
        context, alignments = self.attention(z, states, lengths)
        a = torch.tanh(self.combine(torch.cat([context, z], -1)))
        return self.output(a), h, alignments


class Model(nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.encoder, self.bridge, self.decoder = Encoder(), nn.Linear(2 * size, size), Decoder()

    def start(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.encoder(source, lengths)
        return states, torch.tanh(self.bridge(last))[None]

    def forward(self, source: Tensor, lengths: Tensor, inputs: Tensor) -> Tensor:
        states, h = self.start(source, lengths)
        return self.decoder(inputs, h, states, lengths)[0]

    @torch.no_grad()
    def write(self, source: Tensor, lengths: Tensor) -> Tensor:
        states, h = self.start(source, lengths)
        token = torch.full((len(source), 1), BOS)
        written, ended = [], torch.zeros(len(source), 1, dtype=torch.bool)
        for _ in range(LONGEST + 1):
            logits, h, _ = self.decoder(token, h, states, lengths)
            token = logits.argmax(-1).masked_fill(ended, 0)
            written.append(token)
            ended = ended | (token == EOS)
        return torch.cat(written, 1)


model = Model()
losses = lesson.train(model, steps=options.steps)

# %% [markdown]
# ## The bottleneck is gone
#
# Length hardly matters any more: nothing has to be remembered, only found.

# %%
buckets = lesson.accuracy_by_length(model.write)
lesson.keep("attention", losses, buckets)
lesson.figures(["initial state", "context at every step", "attention"], "3")

# %% [markdown]
# ## The same model from the toolkit, and where it looks
#
# The alignments of the letters written, one row each, in the longest of twenty strings that came
# out right: the decoder walks along the source, and nobody told it to. The one that is wrong lacks
# a stretch that comes twice in a row, *djdj*: to a query both look alike.

# %%
config = s2s.Seq2SeqConfig(
    source_vocab_size=VOCABULARY_SIZE,
    target_vocab_size=VOCABULARY_SIZE,
    source_embedding_size=32,
    target_embedding_size=32,
    encoder_hidden_size=64,
    decoder_hidden_size=64,
    bidirectional=True,
    attention="general",
)
toolkit = s2s.Seq2Seq(config).eval()
names = {"bridge.": "bridge.hidden.", "encoder.rnn.": "encoder.stack.rnn."}
names["decoder.rnn."] = "decoder.stack.rnn."
weights = model.state_dict()
for ours_name, theirs_name in names.items():
    weights = {
        theirs_name + name.removeprefix(ours_name) if name.startswith(ours_name) else name: w
        for name, w in weights.items()
    }
toolkit.load_state_dict(weights)
source, lengths, target = lesson.strings(20, seed=0)
with torch.no_grad():
    theirs = toolkit(source, target, lengths).logits
    ours = model(source, lengths, lesson.shifted(target))
inside = target != 0
assert torch.allclose(theirs[inside], ours[inside], atol=1e-4)

found = toolkit.generate(
    source,
    lengths,
    num_beams=4,
    max_new_tokens=LONGEST + 1,
    return_attention=True,
    return_dict_in_generate=True,
)
pairs = [
    (lesson.text(letters[:length]), lesson.text(ids), row)
    for row, (letters, length, ids) in enumerate(
        zip(source.tolist(), lengths.tolist(), found.sequences.tolist(), strict=True)
    )
]
for read, written, _ in pairs:
    print(f"{read} -> {written}{'' if read == written else '   (wrong)'}")
right = [pair for pair in pairs if pair[0] == pair[1]] or pairs
read, written, row = max(right, key=lambda pair: len(pair[0]))
written = [*written, "</s>"][: int(found.lengths[row])]
lesson.show(attention_as_png(list(read), written, found.alignments[row]), "3_alignments")
