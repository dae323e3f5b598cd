"""The benchmarks run; what they measure is for ``make bench``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import itnet
from benchmarks import capture_time, gpu, measure, overhead, zoo


def test_alternate_gives_everybody_the_same_number_of_rounds():
    calls = [0, 0]

    def contestant(index):
        def run():
            calls[index] += 1

        return run

    times = measure.alternate([contestant(0), contestant(1)], seconds=0.05)
    assert len(times[0]) == len(times[1]) >= 9
    assert calls[0] == calls[1]
    assert measure.typical([4.0, 3.0, 2.0, 1.0]) == 2.0


def test_table():
    assert measure.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_overhead_row():
    model, x = nn.Sequential(nn.Conv1d(2, 2, 3), nn.ReLU()).eval(), torch.randn(2, 2, 9)
    cells, kept = overhead.compare(model, itnet.unify(model, x), (x,), {}, seconds=0.1)
    assert len(cells) == len(overhead.HEADER) - 2
    assert kept == (cells[-1] == "yes")
    assert overhead.graph_breaks(model, (x,), {}) == 0


@pytest.mark.foreign
def test_capture_time_row():
    pytest.importorskip("transformers")
    model, kwargs = capture_time.network(1, width=24)
    assert capture_time.export_alone(model, kwargs) > 0
    total, verify, compared = capture_time.unify_stages(model, kwargs)
    assert total > verify > 0
    assert compared > 0


def test_zoo_row():
    row = zoo.row("bilstm_tagger")
    line = dict(zip(zoo.HEADER, row, strict=True))
    assert (line["captured"], line["families"], line["largest difference"]) == ("whole", "1 gated", "0")


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 0
    assert "No CUDA device" in capsys.readouterr().out
