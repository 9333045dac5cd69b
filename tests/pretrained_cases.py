"""The models of OpenNMT-py and fairseq in plain torch: their names of weights, their mathematics.

Modules carry the packages' names, so that a ``state_dict`` has the keys of a checkpoint. They run
one sequence at a time, step by step, and share no code with seq2seq_ext.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Holder(nn.Module):
    """A module of named parts."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def attend(z: Tensor, memory: Tensor, scores: Tensor, out: Tensor) -> Tensor:
    """``tanh(W_o [c; z])`` of one query (H,), a memory (S, M) and its scores (S,)."""
    context = scores.softmax(0) @ memory
    return torch.tanh(out @ torch.cat([context, z]))


class PlainFairseq(nn.Module):
    """``fairseq.models.lstm.LSTMModel`` with attention."""

    def __init__(
        self,
        *,
        vocab_size: int,
        embed: int = 5,
        encoder_hidden: int = 6,
        decoder_hidden: int = 6,
        layers: int = 2,
        bidirectional: bool = False,
        out_embed: int | None = None,
        share: bool = False,
    ) -> None:
        super().__init__()
        out_embed = decoder_hidden if out_embed is None else out_embed
        memory = encoder_hidden * (2 if bidirectional else 1)
        self.encoder = Holder(
            embed_tokens=nn.Embedding(vocab_size, embed),
            lstm=nn.LSTM(embed, encoder_hidden, layers, bidirectional=bidirectional),
        )
        sizes = [embed + decoder_hidden] + [decoder_hidden] * (layers - 1)
        parts: dict[str, nn.Module] = {
            "embed_tokens": nn.Embedding(vocab_size, embed),
            "layers": nn.ModuleList(nn.LSTMCell(size, decoder_hidden) for size in sizes),
            "attention": Holder(
                input_proj=nn.Linear(decoder_hidden, memory, bias=False),
                output_proj=nn.Linear(memory + decoder_hidden, decoder_hidden, bias=False),
            ),
        }
        if memory != decoder_hidden:
            parts["encoder_hidden_proj"] = nn.Linear(memory, decoder_hidden)
            parts["encoder_cell_proj"] = nn.Linear(memory, decoder_hidden)
        if out_embed != decoder_hidden:
            parts["additional_fc"] = nn.Linear(decoder_hidden, out_embed)
        if not share:
            parts["fc_out"] = nn.Linear(out_embed, vocab_size)
        self.decoder = Holder(**parts)

    def forward(self, source: list[int], inputs: list[int]) -> Tensor:
        """Logits (len(inputs), V) of their ids, the decoder's inputs given."""
        encoder, decoder = self.encoder, self.decoder
        outputs, (h_n, c_n) = encoder.lstm(encoder.embed_tokens(torch.tensor(source)))
        layers = len(decoder.layers)
        h = list(h_n.view(layers, -1))  # directions side by side
        c = list(c_n.view(layers, -1))
        if hasattr(decoder, "encoder_hidden_proj"):
            h = [decoder.encoder_hidden_proj(x) for x in h]
            c = [decoder.encoder_cell_proj(x) for x in c]
        feed = torch.zeros_like(h[0])
        logits = []
        for token in inputs:
            x = torch.cat([decoder.embed_tokens(torch.tensor(token)), feed])
            for i, cell in enumerate(decoder.layers):
                h[i], c[i] = cell(x, (h[i], c[i]))
                x = h[i]
            scores = outputs @ decoder.attention.input_proj(x)
            feed = x = attend(x, outputs, scores, decoder.attention.output_proj.weight)
            if hasattr(decoder, "additional_fc"):
                x = decoder.additional_fc(x)
            shared = not hasattr(decoder, "fc_out")
            logits.append(decoder.embed_tokens.weight @ x if shared else decoder.fc_out(x))
        return torch.stack(logits)


class PlainOpenNMT(nn.Module):
    """``onmt.models.NMTModel`` of an RNNEncoder and an InputFeedRNNDecoder or StdRNNDecoder."""

    def __init__(
        self,
        *,
        source_size: int,
        target_size: int,
        rnn_type: str = "LSTM",
        embed: int = 5,
        hidden: int = 6,
        layers: int = 2,
        bidirectional: bool = False,
        attention: str = "general",
        input_feed: bool = True,
        bridge: bool = False,
    ) -> None:
        super().__init__()
        one_way = hidden // 2 if bidirectional else hidden
        rnn = getattr(nn, rnn_type)
        encoder: dict[str, nn.Module] = {
            "embeddings": self.embeddings(source_size, embed),
            "rnn": rnn(embed, one_way, layers, bidirectional=bidirectional),
        }
        if bridge:
            maps = [nn.Linear(layers * one_way, layers * one_way) for _ in range(2)]
            encoder["bridge"] = nn.ModuleList(maps[: 2 if rnn_type == "LSTM" else 1])
        self.encoder = Holder(**encoder)
        decoder: dict[str, nn.Module] = {"embeddings": self.embeddings(target_size, embed)}
        if input_feed:
            cell = getattr(nn, f"{rnn_type}Cell")
            sizes = [embed + hidden] + [hidden] * (layers - 1)
            decoder["rnn"] = Holder(layers=nn.ModuleList(cell(size, hidden) for size in sizes))
        else:
            decoder["rnn"] = rnn(embed, hidden, layers)
        if attention != "none":
            mlp = attention == "mlp"
            parts = {"linear_out": nn.Linear(2 * hidden, hidden, bias=mlp)}
            if mlp:
                parts["linear_context"] = nn.Linear(hidden, hidden, bias=False)
                parts["linear_query"] = nn.Linear(hidden, hidden)
                parts["v"] = nn.Linear(hidden, 1, bias=False)
            if attention == "general":
                parts["linear_in"] = nn.Linear(hidden, hidden, bias=False)
            decoder["attn"] = Holder(**parts)
        self.decoder = Holder(**decoder)
        self.generator = nn.Linear(hidden, target_size)

    @staticmethod
    def embeddings(vocab_size: int, size: int) -> Holder:
        luts = nn.ModuleList([nn.Embedding(vocab_size, size)])
        return Holder(make_embedding=Holder(emb_luts=luts))

    def bridged(self, states: Tensor, index: int) -> Tensor:
        """Final states (layers * directions, H) of one sequence, as the decoder has them."""
        if not hasattr(self.encoder, "bridge"):
            return states
        linear = self.encoder.bridge[index]
        rows = states.reshape(-1, linear.in_features)
        return linear(rows).relu().reshape(states.shape)

    def forward(self, source: list[int], inputs: list[int]) -> Tensor:
        """Logits (len(inputs), V) of their ids, the decoder's inputs given."""
        decoder = self.decoder
        embedded = self.encoder.embeddings.make_embedding.emb_luts[0](torch.tensor(source))
        outputs, last = self.encoder.rnn(embedded)
        states = last if isinstance(last, tuple) else (last,)
        states = tuple(self.bridged(state, i) for i, state in enumerate(states))
        layers = self.encoder.rnn.num_layers
        states = tuple(state.reshape(layers, -1) for state in states)
        x = decoder.embeddings.make_embedding.emb_luts[0](torch.tensor(inputs))
        if isinstance(decoder.rnn, nn.RNNBase):
            steps = decoder.rnn(x, states if len(states) == 2 else states[0])[0]
            found = [self.attentional(z, outputs) for z in steps]
        else:
            carried = [list(state) for state in states]
            found, feed = [], torch.zeros(outputs.size(1))
            for t in range(len(inputs)):
                z = torch.cat([x[t], feed])
                for i, cell in enumerate(decoder.rnn.layers):
                    if len(carried) == 2:
                        carried[0][i], carried[1][i] = cell(z, (carried[0][i], carried[1][i]))
                    else:
                        carried[0][i] = cell(z, carried[0][i])
                    z = carried[0][i]
                feed = self.attentional(z, outputs)
                found.append(feed)
        return self.generator(torch.stack(found))

    def attentional(self, z: Tensor, outputs: Tensor) -> Tensor:
        if not hasattr(self.decoder, "attn"):
            return z
        attn: Any = self.decoder.attn
        if hasattr(attn, "v"):
            sums = attn.linear_query(z) + attn.linear_context(outputs)
            context = attn.v(torch.tanh(sums))[:, 0].softmax(0) @ outputs
            return attn.linear_out(torch.cat([context, z]))
        query = attn.linear_in(z) if hasattr(attn, "linear_in") else z
        return attend(z, outputs, outputs @ query, attn.linear_out.weight)
