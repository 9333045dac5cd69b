"""``seq2seq-ext plot``, and the pictures that it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seq2seq_ext.cli import main
from seq2seq_ext.data import DataConfig, Vocabulary
from seq2seq_ext.generation import BeamNode, BeamTree, GenerationOutput
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.training import Run, save_run

pytest.importorskip("matplotlib", reason="pictures need the extra [plot]")
pytest.importorskip("safetensors", reason="run folders need the extra [train]")

from matplotlib import font_manager

from seq2seq_ext.plots import beam_tree_as_png, figures, learning_curves_as_png, read_log
from seq2seq_ext.plots.figures import font_families

PNG = b"\x89PNG\r\n\x1a\n"
LOG = "step,epoch,loss,dev_loss,learning_rate\n5,0.5,2.5,,0.1\n10,1,2,,0.05\n10,,,2.25,\n"


def save(folder: Path, **changes: Any) -> Path:
    pairs = folder.parent / "pairs.tsv"
    pairs.write_text("".join(f"{'ab' * i}\t{'b' * (i % 4 + 1)}\n" for i in range(1, 40)))
    torch.manual_seed(0)
    sizes = {"source_vocab_size": 6, "target_vocab_size": 6}
    sizes |= {"encoder_hidden_size": 8, "decoder_hidden_size": 8}
    config = DataConfig(pairs=str(pairs), test=0.5)
    vocabulary = Vocabulary("ab")
    model = Seq2Seq(Seq2SeqConfig(**sizes, **changes))
    save_run(folder, Run(model, vocabulary, vocabulary, {"data": config.to_dict()}))
    (folder / "metrics.csv").write_text(LOG)
    return folder


def test_every_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "run", attention="general")
    options = ["--curves", "--lengths", "--attention", "abab", "--beams", "abab"]
    assert main(["plot", str(folder), *options]) == 0
    pictures = {path.stem: path.read_bytes() for path in (folder / "plots").iterdir()}
    assert set(pictures) == {"curves", "lengths", "attention", "beams"}
    assert all(content.startswith(PNG) for content in pictures.values())
    assert f"curves: {folder / 'plots' / 'curves.png'}" in capsys.readouterr().out


def test_several_runs_are_drawn_beside_each_other(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one"), save(tmp_path / "other", cell="lstm")
    out = tmp_path / "pictures"
    assert main(["plot", str(one), str(other), "--out", str(out)]) == 0
    together = (out / "curves.png").read_bytes()
    assert main(["plot", str(one), str(other), "--lengths", "--out", str(out)]) == 0
    assert (out / "lengths.png").read_bytes().startswith(PNG)
    assert main(["plot", str(one), "--out", str(out)]) == 0
    assert (out / "curves.png").read_bytes() != together


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["{run}", "{run}", "--beams", "a"], 2, "--beams is of one run, got 2"),
        (["{run}", "--beams", "a", "--num-beams", "1"], 2, "--beams needs --num-beams above 1"),
        (["{run}", "--attention", " "], 1, "TEXT must not be blank"),
        (["{run}", "--attention", "ab"], 1, "needs a model with attention"),
        (["{run}-2"], 1, "No such file or directory"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    options: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save(tmp_path / "run")
    try:
        found = main(["plot", *(part.format(run=folder) for part in options)])
    except SystemExit as leaving:
        found = int(leaving.code or 0)
    assert found == status
    assert message in capsys.readouterr().err


def test_a_log_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(LOG + "15,1.5,1.")
    rows = read_log(path)
    assert rows[0] == {"step": 5, "epoch": 0.5, "loss": 2.5, "learning_rate": 0.1}
    assert rows[2] == {"step": 10, "dev_loss": 2.25}
    assert len(rows) == 3
    path.write_text("name,age\nx,1\n")
    with pytest.raises(ValueError, match="must be the log of a run"):
        read_log(path)
    path.write_text("step,loss\n1,much\n")
    with pytest.raises(ValueError, match="line 2 must hold numbers"):
        read_log(path)


def test_curves_show_what_is_in_the_log() -> None:
    falling = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0}]
    rising = [{"step": 1.0, "loss": 1.0}, {"step": 2.0, "loss": 2.0}]
    picture = learning_curves_as_png({"run": falling}, "loss")
    assert picture.startswith(PNG)
    assert picture != learning_curves_as_png({"run": rising}, "loss")
    with pytest.raises(ValueError, match="at least one row"):
        learning_curves_as_png({"run": []}, "nothing")


def test_a_tree_is_drawn() -> None:
    output = GenerationOutput(torch.tensor([[4, 3]]), torch.tensor([2]), None)
    nodes = [BeamNode(None, 2, 0.0, 0.0, None), BeamNode(0, 4, -0.1, -0.1, None)]
    nodes += [BeamNode(0, 5, -3.0, -3.0, None), BeamNode(1, 3, -0.2, -0.3, 0)]
    names = ["<pad>", "<unk>", "<s>", "</s>", "서", " "]
    picture = beam_tree_as_png(BeamTree(nodes, output), names, "水")
    assert picture.startswith(PNG)
    given_up = [*nodes[:3], nodes[3]._replace(rank=None)]
    assert picture != beam_tree_as_png(BeamTree(given_up, output), names, "水")
    with pytest.raises(ValueError, match="at least one token"):
        beam_tree_as_png(BeamTree(nodes[:1], output), names, "nothing")


def test_chinese_japanese_and_korean_have_a_font(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("noto_cjk_sans_jp_regular", reason="the font needs the extra [plot]")
    monkeypatch.setattr(figures, "_CJK", ())  # as on a machine without such fonts
    text = "서울 水 かな ᄒ"
    families = font_families(text)
    assert len(families) == 2
    path = font_manager.findfont(families[1], fallback_to_default=False)
    known = font_manager.get_font(path).get_charmap()
    assert all(ord(character) in known for character in text)
