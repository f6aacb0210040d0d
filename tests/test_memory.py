"""Out of memory is one line, wherever it happens; nothing finished is lost."""

from __future__ import annotations

import re

import pytest
import torch
from painted import PaintedPrior, RedReward, tiny_config

from psd_gs import cli
from psd_gs import pipeline as pipeline_module
from psd_gs.errors import LESS_MEMORY, BackendError, enough_memory
from psd_gs.pipeline import TextTo3DPipeline

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB, max allowed: 9.1 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    MemoryError("Unable to allocate 9.0 GiB for an array"),
)


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
def test_every_kind_of_it_is_known(error):
    with (
        pytest.raises(BackendError, match=re.escape(f"out of memory in a test. {LESS_MEMORY}")),
        enough_memory("in a test"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("in a test"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
def test_while_models_are_loaded_and_while_the_prompt_is_read(monkeypatch, error):
    monkeypatch.setattr(pipeline_module, "load_prior", failing(error))
    with pytest.raises(BackendError, match=r"out of memory while the models were loaded\. Fit into less"):
        TextTo3DPipeline.from_pretrained("mini", device="cpu")
    prior = PaintedPrior()
    prior.embed = failing(error)
    with pytest.raises(BackendError, match=r"out of memory while the prompt was read\. Fit into less"):
        TextTo3DPipeline(prior, RedReward()).trainer(tiny_config())


def test_in_a_step_and_at_the_command_line(monkeypatch, capsys):
    prior = PaintedPrior()
    trainer = TextTo3DPipeline(prior, RedReward()).trainer(tiny_config())
    prior.predict = failing(ERRORS[1])
    with pytest.raises(BackendError, match=r"out of memory in step 1 with 120 Gaussians\. Fit into less"):
        list(trainer.run())
    monkeypatch.setattr("psd_gs.cli.info.Info.run", failing(ERRORS[0]))
    with pytest.raises(SystemExit):
        cli.main(["info", "x.ply"])
    assert capsys.readouterr().err == f"error: out of memory. {LESS_MEMORY}\n"
    with pytest.raises(torch.OutOfMemoryError):
        cli.main(["info", "x.ply", "--debug"])


def test_a_product_that_does_not_fit_is_noted_in_a_word(tmp_path):
    pipeline = TextTo3DPipeline(PaintedPrior(), RedReward())
    trainer = pipeline.trainer(tiny_config(steps=2))
    list(trainer.run())
    result = pipeline.unscored(trainer)
    result.save(tmp_path, products={"mesh.glb": failing(ERRORS[0])})
    assert result.failed == {"mesh.glb": "out of memory"}
