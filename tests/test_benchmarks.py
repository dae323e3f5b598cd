"""The benchmarks run; what they measure is for ``make bench``."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from torch import nn

import itnet
from benchmarks import (
    burgers,
    capture_time,
    gpu,
    kernel,
    kernel_peers,
    loops,
    measure,
    newton,
    overhead,
    recurrence,
    shifts,
)
from benchmarks.zoo import apart, catalog, document, examine, from_transformers, kinds, run


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


def test_learned_kernel_rows():
    lines = kernel.rows(32, seconds=0.05)
    assert [len(line) for line in lines] == [len(kernel.HEADER)] * 2
    assert kernel.grown(64, "tiled") >= 0
    assert kernel.doubling(32, seconds=0.0) > 0


def test_learned_kernel_beside_torch_compile(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert [len(line) for line in kernel_peers.compiled(32, seconds=0.0)] == [len(kernel_peers.HEADER)] * 2
    monkeypatch.setattr(kernel_peers, "WAYS", {"another": (kernel_peers.compiled, "no_such_package")})
    assert kernel_peers.rows(32, seconds=0.0) == ([], ["another is not installed."])


def test_burgers():
    """The solver keeps the mean and Cole–Hopf's solution; points may lie anywhere."""
    x = torch.arange(burgers.FINE, dtype=torch.float64) / burgers.FINE
    nu, turn = burgers.VISCOSITY, 2 * torch.pi

    def exact(t):
        """−2ν·∂ₓ log φ for φ = 2 + exp(−ν·(2π)²·t)·cos 2πx, a solution of the heat equation."""
        fade = torch.exp(torch.tensor(-nu * turn**2 * t, dtype=torch.float64))
        return 2 * nu * turn * fade * torch.sin(turn * x) / (2 + fade * torch.cos(turn * x))

    torch.testing.assert_close(burgers.solved(exact(0.0)[None], 200)[0], exact(1.0), rtol=1e-7, atol=1e-9)
    values = burgers.initial(3, torch.Generator().manual_seed(0))
    points = burgers.irregular(values, values, torch.Generator().manual_seed(1))
    assert (points.places.diff() > 0).all()
    torch.testing.assert_close(
        burgers.interpolated(points.before, points.places, points.places), points.before, rtol=1e-4, atol=1e-5
    )
    assert burgers.Operator(8)(points).shape == (3, burgers.COARSE)


def test_overhead_row():
    model, x = nn.Sequential(nn.Conv1d(2, 2, 3), nn.ReLU()).eval(), torch.randn(2, 2, 9)
    cells, kept = overhead.compare(model, itnet.unify(model, x), (x,), {}, seconds=0.1)
    assert len(cells) == len(overhead.HEADER) - 2
    assert kept == (cells[-1] == "yes")
    assert overhead.graph_breaks(model, (x,), {}) == 0


@pytest.mark.foreign
def test_capture_time_row():
    pytest.importorskip("transformers")
    model, kwargs = capture_time.network(1, "eager", width=24)
    assert capture_time.export_alone(model, kwargs) > 0
    total, verify, captured, compared = capture_time.unify_stages(model, kwargs)
    assert total > captured > verify > 0
    assert compared > 0


def test_loop_row():
    assert len(newton.row("sine", 9, seconds=0.0)) == len(newton.HEADER)
    line = loops.row("sine", 9, seconds=0.05, patience=0)
    assert len(line) == len(loops.HEADER) + len(loops.MORE)
    assert line[1] == ("loop (fused)" if importlib.util.find_spec("llvmlite") else "loop (library)")


@pytest.mark.foreign
def test_recurrence_row():
    pytest.importorskip("transformers")
    assert len(recurrence.scan_row(4, 0.05)) == len(recurrence.SCAN)


def test_the_zoo_lists_every_network_once():
    pytest.importorskip("transformers")
    names = catalog.names()
    assert len(names) == len(set(names)) > 600
    assert set(catalog.QUICK) <= set(names)
    assert {catalog.library_of(name) for name in names} == set(catalog.LIBRARIES)
    assert set(catalog.QUICK) < set(catalog.sample(150, names)) < set(names)
    assert catalog.family_of("timm/repvgg_a0") == "byobnet"


def test_zoo_record_of_one_network(tmp_path):
    examine.main(["torch/bilstm_tagger", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["status"], record["captured"], record["families"]) == ("unified", "whole", {"gated": 1})
    assert (record["forward_error"], record["gradient_error"], record["equal"]) == (0, 0, True)
    assert (record["coverage"], record["softmax_left"], document.shortfall(record)) == (1, 0, "")


def test_zoo_goes_on_where_it_was_broken_off(tmp_path):
    file, seen, said = tmp_path / "zoo.jsonl", [], []

    def examine_none(name, seconds):
        seen.append(name)
        return {"name": name, "status": "failed", "attention": "sdpa", "error": ""}

    options = dict(jobs=1, say=said.append, examine=examine_none)
    run.run(["torch/a"], file, **options, both=False)
    file.write_text(file.read_text() + '{"name": "torch/b", "sta')  # ended while writing
    run.run(["torch/a", "torch/b"], file, **options)
    assert seen == ["torch/a", "torch/a@eager", "torch/b", "torch/b@eager"]
    assert set(run.read([file])) == set(seen)
    run.run(["torch/a"], file, **options, again=True, both=False)
    assert seen[-1] == "torch/a"
    assert len(said) == 5


def test_zoo_ends_a_network_that_takes_too_long():
    with apart.Examiner([]) as examine_apart:
        record = examine_apart("torch/bilstm_tagger", 0.1)
    assert record["library"] == "torch"
    assert record["status"] in ("does not run", "failed")
    assert "time limit of 0.1 s" in record["error"]


@pytest.mark.exhaustive
def test_zoo_goes_on_where_the_process_that_forks_died():
    with apart.Examiner([]) as examine_apart:
        for _ in range(2):
            record = examine_apart("torch/no_such_network", 60)
            assert (record["status"], record["error"]) == ("does not run", "KeyError: 'no_such_network'")
            examine_apart._server.kill()


@pytest.fixture
def few_kinds(monkeypatch):
    pytest.importorskip("transformers")
    cached = (kinds._configurations, kinds.twins, kinds.wholes)
    monkeypatch.setattr(from_transformers, "names", lambda: ["clip_text_model", "clip_vision_model", "clip", "gpt-sw3"])
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_zoo_leaves_out_what_ran_as_part_of_another(few_kinds):
    assert kinds.wholes() == {"clip_text_model": ("clip",), "clip_vision_model": ("clip",)}
    assert kinds.state("clip_text_model", {}) == "wait"
    ran = {"transformers/clip": dict(status="unified", kinds=["clip", "clip_text_model"])}
    assert kinds.state("clip_text_model", ran) == "part"
    assert kinds.state("clip_vision_model", ran) == "alone"
    assert kinds.state("clip_text_model", {"transformers/clip": dict(status="failed", kinds=[])}) == "alone"
    assert (kinds.state("clip", ran), kinds.state("gpt-sw3", ran)) == ("alone", "twin")


def test_zoo_notes_which_parts_run():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    for name, part in model.items():
        part.config = type("Config", (), {"model_type": name})()
    with kinds.running(model) as ran:
        model["used"](torch.zeros(1, 2))
    model["unused"](torch.zeros(1, 2))
    assert ran == {"used"}


def _record(name, **known):
    found = dict(captured="whole", families={"softmax": 2}, coverage=1.0, equal=True, softmax_found=2, softmax_left=0)
    errors = dict(forward_error=0.0, gradient_error=2e-7, own_repeat=0.0, time_ratio=1.01)
    empty = dict(softmax_reasons=[], unmatched=[], reasons=[], share=1.0, status="unified")
    return dict(name=name, library=name.partition("/")[0]) | found | errors | empty | known


def test_zoo_document():
    divided = "eval mode, x: float32[·,·], y: container, z=None: takes a size [/a/b.py:12]; keep it outside"
    refused = [["fuse_attention: the mask is learned", 1]]
    records = [
        _record("timm/good"),
        _record("timm/apart", captured="3 parts", share=0.5, reasons=[divided, divided]),
        _record("transformers/left@eager", softmax_found=1, softmax_left=1, softmax_reasons=refused),
        _record("transformers/wrong", equal=False, forward_error=0.5, gradient_error=0.25, fused_error_gradients=0.125),
        _record("transformers/late", status="failed", error="time limit of 300 s at the stage: unify"),
        _record("transformers/broken", status="does not run", error="ValueError: a | b"),
        _record("transformers/thin", coverage=0.5, unmatched=[[4, "cumsum", "cumsum over a position axis"]]),
    ]
    page = document.render(records, known=9, left_out={"part": 2})
    assert "6 of the 9 networks" in page
    assert "2 more ran as parts" in page
    assert "| good | whole | 2 softmax | 100% | 0 | 2e-07 | 1.01 |" in page
    assert "| apart | 3 parts, 50% |" in page
    assert "| timm | 2 | 2 of 2 (100.0%) | 1 of 2 (50.0%) | 100.0% | 4 of 4 (100.0%) |  | 1.01 |" in page
    assert "| transformers | 4 (1 more do not run) | 2 of 4 (50.0%) |" in page
    assert "| transformers/left@eager | 1 softmax block left: 1× fuse_attention: the mask is learned" in page
    assert "| transformers/wrong | differs by 5.0e-01" in page
    assert "1.2e-01 of the network with torch's fused attention" in page
    assert "a \\| b" in page
    assert "| takes a size | 1 | timm/apart |" in page
    assert "coverage 50%: 4× `cumsum`" in page
    assert [record["name"] for record in records if document.is_wrong(record)] == [
        "transformers/wrong",
        "transformers/late",
    ]


def test_zoo_document_has_a_part_that_is_written_at_every_change():
    records = [_record("timm/other"), _record(catalog.QUICK[0]), _record(catalog.QUICK[1])]
    page = document.render(records, known=9, left_out={})
    assert document.outdated(page, records[1:]) == []
    slower = _record(catalog.QUICK[0], time_ratio=7.0, gradient_error=1e-6)
    assert document.outdated(page, [slower]) == []
    thinner = _record(catalog.QUICK[1], coverage=0.5)
    (line,) = document.outdated(page, [slower, thinner])
    assert line == f"{catalog.QUICK[1]}: whole, 2 softmax, 50%; the page says whole, 2 softmax, 100%"
    newer = document.with_quick(page, [slower, thinner])
    assert document.outdated(newer, [slower, thinner]) == []
    assert newer.partition("<!-- quick")[0] == page.partition("<!-- quick")[0]
    assert newer.partition("<!-- end")[2] == page.partition("<!-- end")[2]
    assert document.outdated("", [thinner]) == [
        f"{catalog.QUICK[1]}: whole, 2 softmax, 50%; the page says nothing",
    ]
    with pytest.raises(ValueError, match="no quick part"):
        document.with_quick("", records)


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 0
    assert "No CUDA device" in capsys.readouterr().out


def test_shifts():
    assert len(shifts.row("differences", 8, seconds=0.0)) == len(shifts.HEADER)
