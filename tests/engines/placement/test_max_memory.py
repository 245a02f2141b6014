"""`discover(max_memory=...)`: the same decisions, and the memory of the process is what was promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from tests.helpers.families import family_loader, family_model

SCRIPT = """
import json, sys
import torch
import pahq_plugin as pahq
from pahq_plugin.system.memory import release_unused
from pahq_plugin.system.meter import memory_above
from transformer_lens import HookedTransformer, HookedTransformerConfig
from auto_circuit.data import PromptDataLoader, PromptDataset

torch.set_num_threads(1)
folder, layers, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
settings = json.loads(sys.argv[4])
positional = settings.pop("positional")

def build():
    config = HookedTransformerConfig(
        n_layers=layers, n_heads=4, d_model=width, d_head=width // 4, d_mlp=4 * width, n_ctx=12,
        d_vocab=300, act_fn="gelu", normalization_type="LN", seed=0,
    )
    model = HookedTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.8 / width**0.5, generator=generator)
    return model

def loader():
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randint(300, (8, 12), generator=generator) for _ in range(2))
    answers = [torch.tensor([0])] * 8
    return PromptDataLoader(
        PromptDataset(clean, corrupt, answers, answers), seq_len=12, diverge_idx=0, batch_size=8
    )

def search(model, **more):
    adapted = pahq.adapt(model, seq_len=12 if positional else None)
    return pahq.discover(adapted, loader(), progress=False, **settings, **more)

model = build()
weights = sum(p.nbytes for p in model.parameters())
pahq.save_model(model, folder)
del model
for method in ("acdc", settings["method"]):  # code that is loaded once is no part of the question
    problem = pahq.load_problem("greater-than")
    pahq.discover(problem.model, problem.train_loader, method=method, progress=False)
del problem
model = pahq.open_model(folder)
release_unused()
budget = weights // 2
with memory_above() as memory:
    small = search(model, max_memory=budget)
whole = search(build())
print(json.dumps({
    "budget": budget, "above": memory.above, "stats": small.stats.memory,
    "same": [(str(a.edge), a.kept) for a in small.decisions]
    == [(str(a.edge), a.kept) for a in whole.decisions],
    "decisions": len(small.decisions), "kept": len(small.circuit),
    "seconds": [small.stats.seconds, whole.stats.seconds],
}))
"""


def run(folder: Path, layers: int, width: int, **settings: Any) -> dict[str, Any]:
    arguments = [str(folder), str(layers), str(width), json.dumps(settings)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


GRID = [
    pytest.param(12, 512, "acdc", "resample", False, 1e-3, marks=pytest.mark.full),
    pytest.param(16, 768, "acdc", "resample", False, 2e-3, marks=pytest.mark.full),
    pytest.param(16, 768, "pahq", "resample", False, 2e-3, marks=pytest.mark.full),
    pytest.param(12, 768, "acdc", "zero", False, 1e-2, marks=pytest.mark.full),
    pytest.param(
        12, 768, "pahq", "tokenwise_mean_clean_and_corrupt", False, 2e-3, marks=pytest.mark.full
    ),
    pytest.param(8, 768, "acdc", "resample", True, 1e-2, marks=pytest.mark.full),
]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a peak of memory")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("layers", "width", "method", "ablation", "positional", "threshold"), GRID)
def test_a_model_twice_as_large_as_the_budget(
    tmp_path: Path,
    layers: int,
    width: int,
    method: str,
    ablation: str,
    positional: bool,
    threshold: float,
) -> None:
    found = run(
        tmp_path / "model", layers, width,
        method=method, ablation=ablation, positional=positional, threshold=threshold,
    )  # fmt: skip
    print(found)
    assert found["same"] and 0 < found["kept"] < found["decisions"] / 2
    assert found["stats"]["weights"] >= 2 * found["budget"]
    assert found["above"] <= 1.05 * found["budget"], found
    assert found["stats"]["peak"] <= 1.05 * found["budget"], found
    assert found["stats"]["moved"] > 0


def test_a_model_in_memory_is_given_back_as_it_was() -> None:
    model, loader = pahq.adapt(family_model("llama-3")), family_loader()
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    whole = pahq.discover(model, loader, method="acdc", progress=False)
    small = pahq.discover(model, loader, method="acdc", progress=False, max_memory="24.5MB")
    assert [(d.edge, d.kept) for d in small.decisions] == [(d.edge, d.kept) for d in whole.decisions]
    assert small.stats.memory["stayed"] < small.stats.memory["weights"]
    assert whole.stats.memory == {}
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0] and torch.equal(parameter, before[name][1])
        parameter.data.add_(0)


def test_the_plan_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    model, loader = pahq.adapt(family_model("gpt2")), family_loader()
    pahq.discover(model, loader, method="acdc", max_memory="1GB")
    assert "max_memory 1,000 MB: all weights stay in memory" in capfd.readouterr().err
    pahq.discover(model, loader, method="acdc", max_memory="1GB", progress=False)
    assert capfd.readouterr().err == ""
