"""The examples of examples/ do what they say; tests of metrics, local data and the demo train the others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hypergpu
from examples import any_grpc_service, fine_tuning, image_cnn
from hypergpu.tasks import FlatModel, load_task
from tests.documents import ROOT

EXAMPLES = ROOT / "examples"
NODES = [{"id": "near", "profile": "good"}, {"id": "far", "profile": "average"}]


def trained(task: str, rounds: int, **config: Any) -> hypergpu.RunResult:
    return hypergpu.simulate({"nodes": NODES, "task": task, "rounds": rounds, "config": config})


def test_a_network_with_batch_norm_learns_from_augmented_images() -> None:
    shifted = image_cnn.digits().train
    assert isinstance(shifted, image_cnn.Shifted)
    assert len({shifted[0][0].numpy().tobytes() for _ in range(20)}) > 1, "each reading draws a new shift"
    result = trained("examples.image_cnn:digits", 5)
    assert (result.best_metric or 0) > 0.5, "measured: 78 %"


def test_fine_tuning_sends_what_is_trained_and_keeps_what_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"make it with `python -m examples.fine_tuning`"):
        fine_tuning.fine_tuned()
    assert fine_tuning.pretrain(epochs=3) > 0.5
    model = fine_tuning.fine_tuned()
    sent = FlatModel(model).parameter_count
    trainable = sum(each.numel() for each in model.parameters() if each.requires_grad)
    whole = sum(each.numel() for each in model.parameters())
    assert sent == trainable < 0.6 * whole
    result = trained("examples.fine_tuning:digits", 4)
    assert (result.best_metric or 0) > 0.4


def test_a_service_that_knows_nothing_of_it_is_slower_behind_the_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    any_grpc_service.main()
    direct, behind = (float(found) for found in re.findall(r": ([\d.]+) ms", capsys.readouterr().out))
    assert behind - direct > 100, "a poor link adds 150 to 300 ms"


def test_the_notebook_runs_cell_by_cell() -> None:
    notebook = json.loads((EXAMPLES / "compare.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 3
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell, names)
    assert list(names["runs"].policy.unique()) == ["none", "reactive", "conservative"]
    assert names["rounds"]["round"].max() == 15
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"]), "outputs belong to whoever runs it"


def write_hugging_face(folder: Path) -> dict[str, str]:
    """Write a model and a set of reviews as their libraries save them; return the variables that name them."""
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "poor", "film"]
    (folder / "vocab.txt").write_text("\n".join(words))
    model = folder / "model"
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(model)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), num_labels=2, **shape)
    transformers.BertForSequenceClassification(config).save_pretrained(model)
    reviews = {"text": ["a fine film", "a poor film"] * 40, "label": [1, 0] * 40}
    # A fingerprint of its own: the computed one pickles classes of pyarrow, which some releases of it do not allow.
    part = datasets.Dataset(pytest.importorskip("pyarrow").table(reviews), fingerprint="reviews")
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(folder / "set"))
    return {"HF_MODEL": str(model), "HF_DATASET": str(folder / "set"), "HF_HUB_OFFLINE": "1"}


@pytest.mark.filterwarnings("default")  # of libraries that are not ours
def test_a_model_and_a_set_of_hugging_face_are_loaded_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in write_hugging_face(tmp_path).items():
        monkeypatch.setenv(name, value)
    task = load_task("examples.hugging_face:reviews")
    assert isinstance(task.train, tuple)
    result = trained("examples.hugging_face:reviews", 5)
    assert result.state == "completed"
    assert result.final_loss is not None


def test_every_example_is_in_the_list_with_its_command() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    names = [file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")]
    assert len(names) > 6
    row = r"^\| \[{0}\]\({0}\) \| .*`.+` \| .+ \|$"
    assert [name for name in names if not re.search(row.format(re.escape(name)), readme, re.MULTILINE)] == []
