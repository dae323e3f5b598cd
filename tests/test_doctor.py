"""``itnet doctor``: complete, never fails, every gap with its remedy."""

from __future__ import annotations

import json

import pytest
import torch

from itnet_compiler.inspect import doctor
from itnet_compiler.inspect.doctor import Capability, diagnose


def test_versions_and_devices_are_there() -> None:
    found = diagnose()
    assert found.versions["torch"] == torch.__version__
    assert found.versions["python"]
    assert {"triton", "transformers", "onnx"} <= set(found.versions)
    assert found.devices[0].startswith("cpu: ")
    assert Capability("unify, inspect, run", True) in found.capabilities


def test_every_gap_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0" if name == "torch" else None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = diagnose()
    gaps = [capability for capability in found.capabilities if not capability.available]
    assert len(gaps) >= 6
    assert all(gap.missing and gap.remedy for gap in gaps)
    assert 'pip install "itnet-compiler[demo]"' in str(found)
    assert "not installed" in str(found)


def test_untested_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "1.9.0" if name == "torch" else None)
    assert any("torch 1.9.0 is outside the tested versions 2.11 to 2.13" in text for text in diagnose().warnings)
    assert "warnings" in str(diagnose())


def test_dictionary_is_json() -> None:
    plain = diagnose().to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert {"itnet", "versions", "devices", "capabilities", "warnings"} == set(plain)


def test_a_broken_driver_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("driver")

    monkeypatch.setattr(torch.backends.mps, "is_available", broken)
    assert diagnose().devices
